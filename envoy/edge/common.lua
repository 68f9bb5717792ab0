-- Functions that more than one script uses; written in front of each.

local function without_slash(path)
  local base, query = path:match("^([^?]*)(.*)$")
  return (base:gsub("([^/])/+$", "%1")) .. query
end

