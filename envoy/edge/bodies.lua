-- Parses a JSON body by RFC 8259, and the query, before the transcoder, which accepts more than JSON and changes values: a string
-- becomes a list of one, a nested list its items, an object an empty list, "yes" true, and the last of two equal fields wins.
-- Of a gRPC call it reads the frame alone. bodies.py writes METHODS, CALLS and METADATA in front of this script. A failure of the
-- script refuses the request: see `judged`.

local MOST_DEPTH = 32
local WORDS = { ["true"] = "boolean", ["false"] = "boolean", ["null"] = "null" }
local ESCAPES = { b = "\b", f = "\f", n = "\n", r = "\r", t = "\t" }
local DELETE = 127
local TWICE = "must be given once"
local FRAME_BYTES, PLAIN, COMPRESSED = 5, 0, 1

local function malformed()
  error("malformed", 0)
end

local function after_space(text, at)
  return text:find("[^ \t\r\n]", at) or #text + 1
end

local function after_string(text, at)
  at = at + 1
  while true do
    at = text:find('[%c"\\]', at) or malformed()
    local found = text:sub(at, at)
    if found == '"' then
      return at + 1
    elseif found == "\\" then
      if not (text:find('^["\\/bfnrt]', at + 1) or text:find("^u%x%x%x%x", at + 1)) then
        malformed()
      end
      at = at + 2
    elseif found:byte() == DELETE then
      at = at + 1
    else
      malformed()
    end
  end
end

-- Only field names matter here, and these are ASCII.
local function unescaped(name)
  name = name:gsub("\\u00(%x%x)", function(code)
    return string.char(tonumber(code, 16))
  end)
  return (name:gsub("\\(.)", function(letter)
    return ESCAPES[letter] or letter
  end))
end

local function after_number(text, at)
  local whole = text:match("^-?%d+", at) or malformed()
  if whole:find("^-?0%d") then
    malformed()
  end
  at = at + #whole
  at = at + #(text:match("^%.%d+", at) or "")
  return at + #(text:match("^[eE][+-]?%d+", at) or "")
end

local after_value

-- Reads the comma-separated items from `at` to the closing bracket.
local function after_all(text, at, closing, after_one)
  at = after_space(text, at + 1)
  if text:sub(at, at) == closing then
    return at + 1
  end
  while true do
    at = after_space(text, after_one(at))
    local sign = text:sub(at, at)
    if sign == closing then
      return at + 1
    elseif sign ~= "," then
      malformed()
    end
    at = after_space(text, at + 1)
  end
end

-- Calls `each` with the name and kind of each member, and for a list with the kinds of its items.
local function after_object(text, at, depth, each)
  return after_all(text, at, "}", function(here)
    if text:sub(here, here) ~= '"' then
      malformed()
    end
    local colon = after_string(text, here)
    local name = text:sub(here + 1, colon - 2)
    colon = after_space(text, colon)
    if text:sub(colon, colon) ~= ":" then
      malformed()
    end
    local after, kind, kinds = after_value(text, after_space(text, colon + 1), depth)
    each(unescaped(name), kind, kinds)
    return after
  end)
end

local function nobody() end

function after_value(text, at, depth)
  if depth > MOST_DEPTH then
    malformed()
  end
  local first = text:sub(at, at)
  if first == '"' then
    return after_string(text, at), "string"
  elseif first == "{" then
    return after_object(text, at, depth + 1, nobody), "object"
  elseif first == "[" then
    local kinds = {}
    local after = after_all(text, at, "]", function(here)
      local following, kind = after_value(text, here, depth + 1)
      kinds[kind] = true
      return following
    end)
    return after, "list", kinds
  end
  local word = text:match("^%l+", at)
  if word then
    return at + #word, WORDS[word] or malformed()
  end
  return after_number(text, at), "number"
end

-- Returns the field at fault and its violation, or nil.
local function fault(text, fields)
  local at = after_space(text, 1)
  if at > #text then
    return
  end
  if text:sub(at, at) ~= "{" then
    malformed()
  end
  local seen, faulty, complaint = {}, nil, nil
  at = after_object(text, at, 0, function(name, kind, kinds)
    local field = fields[name]
    if not field or faulty then
      return
    end
    local fits = field.kinds[kind] or kind == "null"
    for item in pairs(kinds or {}) do
      fits = fits and (not field.items or field.items[item])
    end
    if seen[field.name] then
      faulty, complaint = field.name, TWICE
    elseif not fits then
      faulty, complaint = field.name, field.complaint
    end
    seen[field.name] = true
  end)
  if after_space(text, at) <= #text then
    malformed()
  end
  return faulty, complaint
end

-- Fields of the path count as given.
local function given_twice(query, fields, in_path)
  local seen = {}
  for _, name in ipairs(in_path) do
    seen[name] = true
  end
  for parameter in query:gmatch("[^&]+") do
    local name = parameter:match("^[^=]*"):gsub("%%(%x%x)", function(code)
      return string.char(tonumber(code, 16))
    end)
    local field = fields[name]
    if field and seen[field.name] and not field.kinds.list then
      return field.name
    end
    seen[field and field.name or ""] = true
  end
end

local function method_of(verb, path)
  for _, method in ipairs(METHODS) do
    if method.verb == verb and path:find(method.path) then
      return method
    end
  end
end

local function refuse(handle, name, field, words)
  local metadata = handle:streamInfo():dynamicMetadata()
  metadata:set(METADATA, "refusal", name)
  metadata:set(METADATA, "field", field)
  handle:respond({ [":status"] = "400" }, words)
end

-- Routes refuse bodies of other media types and with content codings. A body without a type counts as JSON.
local function is_json(headers)
  local coding = (headers:get("content-encoding") or ""):lower()
  local media_type = (headers:get("content-type") or ""):lower():match("^[^; \t]*")
  return (coding == "" or coding == "identity") and (media_type == "" or media_type == "application/json")
end

-- Returns why a body is not one uncompressed message in gRPC's frame (compression flag, four bytes of length, message), or false.
-- gRPC's library lets such a call wait for its deadline, or fails it with the error of a broken connection.
local function misframed(body)
  local size = body and body:length() or 0
  if size < FRAME_BYTES then
    return "frame"
  end
  local sign, highest, higher, lower, lowest = body:getBytes(0, FRAME_BYTES):byte(1, FRAME_BYTES)
  if sign == COMPRESSED then
    return "compressed"
  end
  local length = ((highest * 256 + higher) * 256 + lower) * 256 + lowest
  return (sign ~= PLAIN or size ~= FRAME_BYTES + length) and "frame"
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local is_grpc = (headers:get("content-type") or ""):find("^application/grpc")
  if is_grpc and CALLS[headers:get(":path")] and headers:get(":method") == "POST" then
    local refusal = misframed(handle:body())
    return refusal and refuse(handle, refusal, "", "")
  end
  local path, query = (headers:get(":path") or ""):match("^([^?]*)%??(.*)$")
  local method = method_of(headers:get(":method"), path)
  if not method then
    return
  elseif not method.takes_body then
    local field = given_twice(query, method.fields, method.in_path)
    return field and refuse(handle, "field", field, TWICE)
  end
  local body = is_json(headers) and handle:body()
  if not body then
    return
  end
  local read, field, complaint = pcall(fault, body:getBytes(0, body:length()), method.fields)
  if not read then
    refuse(handle, "json", "", "The request body is not one object of JSON (RFC 8259).")
  elseif field then
    refuse(handle, "field", field, complaint)
  end
end
