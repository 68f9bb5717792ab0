-- A trailing slash after a path's verb (":refresh/"), which the transcoder would look for as a part of the verb. Envoy

function envoy_on_request(handle)
  local headers = handle:headers()
  headers:replace(":path", without_slash(headers:get(":path")))
end
