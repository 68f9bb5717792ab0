-- Resumable server-sent events. On the way in, Last-Event-ID becomes the query's resume_token; on the way out, each event gets its
-- message's resume_token as its id. Runs on the routes of resumable methods only.
-- scripts.py writes ENDED, REDIRECT and common.lua in front of this.

-- Bytes kept of an event's first line: more than a resume_token and the text before it have.
local HEAD_BYTES = 600
local TOKEN = '^data: ?{"resume_token":"([^"\\]+)"'
-- One byte more than the contract allows, so that a longer token is refused there like any other.
local MOST_ID_BYTES = 513

local function percent_encoded(text)
  return (text:gsub("[^%w%-._~]", function(character) return ("%%%02X"):format(character:byte()) end))
end

local function with_token(path, token)
  local base, query = path:match("^([^?]*)%??(.*)$")
  local kept = {}
  for parameter in query:gmatch("[^&]+") do
    -- Last-Event-ID replaces the query's token: a browser that reconnects repeats the query with which it began.
    if not parameter:find("^resume_token=") then
      kept[#kept + 1] = parameter
    end
  end
  kept[#kept + 1] = "resume_token=" .. percent_encoded(token)
  return base .. "?" .. table.concat(kept, "&")
end

function envoy_on_request(handle)
  local headers = handle:headers()
  if headers:get(":method") ~= "GET" then
    -- Native gRPC calls have reached their route already, and carry the token in their message.
    return
  end
  local path, id = without_slash(headers:get(":path")), headers:get("last-event-id")
  if id and id ~= "" then
    path = with_token(path, id:sub(1, MOST_ID_BYTES))
  end
  headers:replace(":path", path)
end

local function with_ids(head, text)
  local parts, from = {}, 1
  while true do
    local newline = text:find("\n", from, true)
    local until_ = newline or #text
    if #head < HEAD_BYTES then
      head = head .. text:sub(from, math.min(until_, from + HEAD_BYTES - #head - 1))
    end
    parts[#parts + 1] = text:sub(from, until_)
    if not newline then
      return head, table.concat(parts)
    end
    -- The transcoder's JSON has no line breaks, so the line is the whole data of the event.
    local token = head:match(TOKEN)
    if token then
      parts[#parts + 1] = "id: " .. token .. "\n"
    end
    head, from = "", newline + 1
  end
end

function envoy_on_response(handle)
  local headers = handle:headers()
  local ended = headers:get(ENDED)
  if headers:get(":status") ~= "200" or headers:get("content-type") ~= "text/event-stream" then
    return
  end
  if ended then
    -- 204 makes an EventSource stop reconnecting (HTML, 9.2.3).
    headers:replace(":status", "204")
    headers:remove("content-type")
    for chunk in handle:bodyChunks() do
      chunk:setBytes("")
    end
    return
  end
  local head, text = "", ""
  for chunk in handle:bodyChunks() do
    head, text = with_ids(head, chunk:getBytes(0, chunk:length()))
    chunk:setBytes(text)
  end
end
