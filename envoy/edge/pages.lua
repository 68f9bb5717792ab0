-- Pages that people open in a browser: HEAD is answered, a query is dropped, refusals become pages, and every answer gets the
-- headers of a page. Runs on the routes of methods that answer with pages, and on unknown paths below them.
-- scripts.py writes common.lua, PAGE_HEADERS, PAGE_TYPE, REFUSALS and OTHER_REFUSAL in front of this.

local PLACE = "storymesh.pages"
local BAD_REQUEST = 400

function envoy_on_request(handle)
  local headers = handle:headers()
  local method = headers:get(":method")
  if method == "HEAD" then
    headers:replace(":method", "GET")
    handle:streamInfo():dynamicMetadata():set(PLACE, "head", true)
  end
  if method == "HEAD" or method == "GET" then
    -- Senders of mail and social networks add parameters to links, which the transcoder would refuse.
    headers:replace(":path", (headers:get(":path"):gsub("%?.*$", "")))
  end
end

function envoy_on_response(handle)
  local headers = handle:headers()
  if (headers:get("content-type") or ""):find("^application/grpc") then
    return
  end
  for name, value in pairs(PAGE_HEADERS) do
    headers:replace(name, value)
  end
  local asked = handle:streamInfo():dynamicMetadata():get(PLACE)
  local head = asked and asked["head"]
  local status = headers:get(":status")
  if tonumber(status) >= BAD_REQUEST then
    local page = REFUSALS[status] or OTHER_REFUSAL
    headers:replace("content-type", PAGE_TYPE)
    headers:replace("content-length", tostring(#page))
    handle:body(true):setBytes(head and "" or page)
  elseif head then
    for chunk in handle:bodyChunks() do
      chunk:setBytes("")
    end
  end
end
