-- Redirections: a browser is sent on to the URL that the service names, and a client that asks for JSON gets the message. Runs on the
-- routes of methods with the option `redirects`.
-- scripts.py writes ENDED, REDIRECT and common.lua in front of this.

local PLACE = "storymesh.redirects"

function envoy_on_request(handle)
  local headers = handle:headers()
  if headers:get(":method") == "GET" then
    local json = (headers:get("accept") or ""):lower():find("application/json", 1, true) ~= nil
    handle:streamInfo():dynamicMetadata():set(PLACE, "json", json)
  end
end

function envoy_on_response(handle)
  local headers = handle:headers()
  local asked = handle:streamInfo():dynamicMetadata():get(PLACE)
  -- Native gRPC calls have not come by a GET.
  if not asked then
    return
  end
  -- Origin for pages of other origins, which the first filter would add where there is none.
  headers:replace("vary", "Accept, Authorization, Origin")
  local url = headers:get(REDIRECT)
  if asked["json"] or not url or headers:get(":status") ~= "200" then
    return
  end
  headers:replace(":status", "302")
  headers:replace("location", url)
  headers:remove("content-type")
  headers:replace("content-length", "0")
  for chunk in handle:bodyChunks() do
    chunk:setBytes("")
  end
end
