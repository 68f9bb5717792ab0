-- Checks every request before any other filter: refuses malformed ones, and keeps only headers of PASSES, in printable ASCII.
-- requests.py writes the tables in capitals in front of this script. Envoy lets a request pass when its script fails, so this script
-- must not fail for any bytes that a client can send.

local ODD = "[^ -~]"
local BLANK, TAB = 32, 9
-- Not a valid token (RFC 6750, 2.1), but present, so that the call counts as an attempt to authenticate.
local NO_TOKEN = "Bearer invalid"

-- Trims blanks at the end. The pattern " *$" takes quadratic time over a run of blanks: at 30 KB it would block Envoy's thread for
-- seconds.
local function trimmed(text)
  local last = #text
  while last > 0 and (text:byte(last) == BLANK or text:byte(last) == TAB) do
    last = last - 1
  end
  return text:sub(1, last)
end

local function credentials(value)
  local scheme, rest = value:match("^[ \t]*(%a+)[ \t]+(.*)$")
  if scheme and scheme:lower() == "bearer" then
    local token = trimmed(rest)
    return token:find("^[%w%-._~+/]+=*$") and "Bearer " .. token or NO_TOKEN
  end
  return value:find(ODD) and NO_TOKEN or value
end

local function media_type(value)
  value = value:gsub("\t", " ")
  if value:find(ODD) then
    -- Replaced instead of removed, because a body without a type would count as JSON.
    return "application/octet-stream"
  end
  local essence, parameters = value:match("^ *([^;]*)(.*)$")
  essence = trimmed(essence:lower())
  -- gRPC's content type has no parameters, and Envoy does not recognise it with some.
  return essence:find("^application/grpc") and essence or essence .. parameters
end

local function agent(value)
  return (value:gsub("[^ -~]+", "?"))
end

local CLEANED = {
  ["authorization"] = credentials,
  ["content-type"] = media_type,
  ["user-agent"] = agent,
  ["x-user-agent"] = agent,
}

-- Values that were found clean, by the names of their headers. Clients repeat tokens and agents, and to look through a token takes
-- longer than all else here. Forgotten when there are too many, so that a worker thread keeps 2 MB at most.
local MOST_REMEMBERED, MOST_REMEMBERED_BYTES = 1000, 2000
local clean, remembered = {}, 0

local function is_known_clean(name, value)
  local values = clean[name]
  return values and values[value]
end

local function remember_clean(name, value)
  if #value > MOST_REMEMBERED_BYTES then
    return
  end
  if remembered == MOST_REMEMBERED then
    clean, remembered = {}, 0
  end
  local values = clean[name] or {}
  clean[name], values[value], remembered = values, true, remembered + 1
end

local function is_grpc(headers)
  return (headers:get("content-type") or ""):find("^application/grpc")
end

local function refuse(handle, refusal)
  handle:streamInfo():dynamicMetadata():set(REFUSAL_METADATA, "name", refusal)
  handle:respond({ [":status"] = STATUSES[refusal] }, "")
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local method, path = headers:get(":method"), headers:get(":path")

  -- Before any refusal, because its form depends on the content type.
  for name, cleaned in pairs(CLEANED) do
    local value = headers:get(name)
    if value and not is_known_clean(name, value) then
      local instead = cleaned(value)
      if instead ~= value then
        headers:replace(name, instead)
      elseif not value:find(ODD) then
        remember_clean(name, value)
      end
    end
  end

  if method == "CONNECT" or not path then
    return refuse(handle, "connect")
  end
  if path:find("[^!-~]") then
    return refuse(handle, "path")
  end
  if TAKES_BODY[method] then
    local query = path:find("?", 1, true)
    if query and query < #path then
      return refuse(handle, "query")
    elseif query then
      headers:replace(":path", path:sub(1, -2))
    end
  end

  local timeout = headers:get("grpc-timeout")
  if timeout and not (#timeout <= 9 and timeout:find("^%d+[HMSmun]$")) then
    return refuse(handle, "timeout")
  end
  -- Never passed on, so that no service unpacks anything. It has no meaning for JSON.
  local compression = headers:get("grpc-encoding")
  if compression and compression ~= "identity" and is_grpc(headers) then
    return refuse(handle, "compression")
  end

  local unwanted = {}
  for name, value in pairs(headers) do
    if not PASSES[name] or (not is_known_clean(name, value) and value:find(ODD)) then
      unwanted[#unwanted + 1] = name
    end
  end
  for _, name in ipairs(unwanted) do
    headers:remove(name)
  end
  if is_grpc(headers) then
    -- Without `te`, gRPC's library resets the call, which looks like a failing service.
    headers:replace("te", "trailers")
  end
end
