-- What wrk sends to loadtest/stream: the same chat again and again.
--
-- Arguments after `--`: seconds, path, key. As in driver.lua, a connection that has its answer after
-- `seconds` is given nothing to send, and `done` prints all of it as one line of JSON.

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

local text, length, deadline

function init(args)
  length = tonumber(args[1])
  local body = '{"model":"m","messages":[{"role":"user","content":"' .. ("w "):rep(50)
    .. '"}],"max_tokens":256,"stream":true,"stream_options":{"include_usage":true}}'
  text = "POST " .. args[2] .. " HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer " .. args[3]
    .. "\r\nTollgate-User: u0\r\nContent-Type: application/json\r\nContent-Length: " .. #body
    .. "\r\n\r\n" .. body
end

-- wrk asks for one request before it starts, to look at it; that one is not sent.
sent, first, last = -1, 0, 0

function request()
  local now = clock()
  if sent < 0 then
    sent = 0
    return text
  end
  if not deadline then
    first, deadline = now, now + length
  elseif now >= deadline then
    last = now
    return ""
  end
  sent = sent + 1
  return text
end

function done(summary)
  local thread, e = threads[1], summary.errors
  print(("RESULT {\"sent\":%d,\"responses\":%d,\"bytes\":%d,\"seconds\":%.6f,"
    .. "\"errors\":{\"connect\":%d,\"read\":%d,\"write\":%d,\"status\":%d,\"timeout\":%d}}"):format(
    thread:get("sent"), summary.requests, summary.bytes, thread:get("last") - thread:get("first"),
    e.connect, e.read, e.write, e.status, e.timeout))
end
