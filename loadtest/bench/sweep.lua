-- What wrk sends to use every seat once: one POST for each user, in order of their ids.
--
-- Arguments after `--`: users, the first user of this run, seconds, path, key.
-- After `seconds`, or the last user, a connection that has its answer is given nothing to send:
-- what was sent and what was answered are then one number. `done` prints it as a line of JSON.

local ffi = require("ffi")
ffi.cdef [[
typedef struct { long sec; long usec; } tollgate_timeval;
int gettimeofday(tollgate_timeval *tv, void *zone);
]]
local tv = ffi.new("tollgate_timeval")
local function clock()
  ffi.C.gettimeofday(tv, nil)
  return tonumber(tv.sec) + tonumber(tv.usec) * 1e-6
end

local threads = {}

function setup(thread)
  table.insert(threads, thread)
end

local users, length, head, tail, deadline

function init(args)
  users, next_user, length = tonumber(args[1]), tonumber(args[2]), tonumber(args[3])
  local body = '{"n":1,"size":"1024x1024"}'
  head = "POST " .. args[4] .. " HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer " .. args[5]
    .. "\r\nTollgate-User: u"
  tail = "\r\nContent-Type: application/json\r\nContent-Length: " .. #body .. "\r\n\r\n" .. body
end

-- wrk asks for one request before it starts, to look at it; that one is not sent.
sent = -1

function request()
  if sent < 0 then
    sent = 0
    return head .. ("%07d"):format(next_user) .. tail
  end
  deadline = deadline or clock() + length
  if next_user >= users or clock() >= deadline then return "" end
  local i = next_user
  next_user, sent = i + 1, sent + 1
  return head .. ("%07d"):format(i) .. tail
end

function done(summary, latency)
  local thread = threads[1]
  local e = summary.errors
  print(("RESULT {\"sent\":%d,\"next\":%d,\"responses\":%d,"
    .. "\"errors\":{\"connect\":%d,\"read\":%d,\"write\":%d,\"status\":%d,\"timeout\":%d}}"):format(
    thread:get("sent"), thread:get("next_user"), summary.requests,
    e.connect, e.read, e.write, e.status, e.timeout))
end
