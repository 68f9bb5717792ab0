-- HEAD for a document that a service answers: asked for by GET, and answered without the body. Envoy

local PLACE = "storymesh.documents"

function envoy_on_request(handle)
  local headers = handle:headers()
  if headers:get(":method") == "HEAD" then
    headers:replace(":method", "GET")
    handle:streamInfo():dynamicMetadata():set(PLACE, "head", true)
  end
end

function envoy_on_response(handle)
  local asked = handle:streamInfo():dynamicMetadata():get(PLACE)
  if asked and asked["head"] then
    for chunk in handle:bodyChunks() do
      chunk:setBytes("")
    end
  end
end
