-- Run by wrk in place of driver.lua: draws a million users and prints how often the first ones
-- came, and one request, without sending anything. Arguments: path of driver.lua, then its own.

function setup(thread) end

function init(args)
  local script = table.remove(args, 1)
  dofile(script)
  local prepare = init
  prepare(args)
  local users, counts = tonumber(args[1]), {}
  for _ = 1, 1000000 do
    local i = draw()
    counts[i] = (counts[i] or 0) + 1
  end
  local head = {}
  for i = 0, 99 do head[#head + 1] = counts[i] or 0 end
  local distinct, outside = 0, 0
  for i in pairs(counts) do
    distinct = distinct + 1
    if i < 0 or i >= users then outside = outside + 1 end
  end
  request() -- the one that wrk looks at
  local hex = request():gsub(".", function(c) return ("%02x"):format(c:byte()) end)
  print(("CHECK {\"head\":[%s],\"distinct\":%d,\"outside\":%d,\"request\":\"%s\"}"):format(
    table.concat(head, ","), distinct, outside, hex))
  io.stdout:flush()
  os.exit(0)
end
