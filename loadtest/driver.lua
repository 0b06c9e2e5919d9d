-- What wrk sends: one POST for a user drawn by Zipf, from strings made before the clock starts.
--
-- Arguments after `--`: users, exponent, seed, seconds, path, key, the letter that users' names begin
-- with, and in how many orgs they are: the user i in the org i modulo that, whose key has its number
-- behind it.
-- After `seconds` a connection that has its answer is given nothing to send, so that none is cut
-- off in flight: what was sent, what was answered and what the backend saw are then one number.
-- `done` prints it all as one line of JSON.

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

-- The body is 200 bytes whatever the quantity, a single digit: this, two letters and `"}`.
local function body(n)
  local start = '{"n":' .. n .. ',"size":"1024x1024","prompt":"'
  return start .. ("p"):rep(200 - #start - 4)
end

-- Two letters that tell users apart. LuaJIT's hash of a long string looks at four bytes in four places
-- only, of which the last is one: requests that were the same there would all be in one chain, and to
-- make 200,000 of them would take minutes.
local LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
local function letters(i)
  local low, high = i % 64 + 1, math.floor(i / 64) % 64 + 1
  return LETTERS:sub(low, low) .. LETTERS:sub(high, high)
end

local requests, prob, alias, users, length

-- Vose's alias method: a draw from any distribution in constant time.
local function prepare(exponent)
  prob, alias = ffi.new("double[?]", users), ffi.new("int[?]", users)
  local total = 0
  for i = 0, users - 1 do
    prob[i] = (i + 1) ^ -exponent
    total = total + prob[i]
  end
  -- Two stacks at the ends of one array.
  local stack, smalls, larges = ffi.new("int[?]", users), 0, users
  for i = 0, users - 1 do
    prob[i] = prob[i] * users / total
    alias[i] = i
    if prob[i] < 1 then
      stack[smalls], smalls = i, smalls + 1
    else
      larges = larges - 1
      stack[larges] = i
    end
  end
  while smalls > 0 and larges < users do
    local less, more = stack[smalls - 1], stack[larges]
    smalls = smalls - 1
    alias[less] = more
    prob[more] = prob[more] + prob[less] - 1
    if prob[more] < 1 then
      larges = larges + 1
      stack[smalls], smalls = more, smalls + 1
    end
  end
  -- What is left is 1 but for rounding.
  for at = 0, smalls - 1 do prob[stack[at]] = 1 end
  for at = larges, users - 1 do prob[stack[at]] = 1 end
end

function draw()
  local i = math.random(0, users - 1)
  if math.random() < prob[i] then return i end
  return alias[i]
end

-- The quantity a user asks for: fixed by the user, 1 to 4.
local function quantity(i) return i % 4 + 1 end

function init(args)
  users, length = tonumber(args[1]), tonumber(args[4])
  prepare(tonumber(args[2]))
  math.randomseed(tonumber(args[3]))
  local path, key, letter, orgs = args[5], args[6], args[7] or "u", tonumber(args[8] or 1)
  local bodies = { body(1), body(2), body(3), body(4) }
  requests = {}
  for i = 0, users - 1 do
    local of = orgs > 1 and ("%05d"):format(i % orgs) or ""
    requests[i] = "POST " .. path .. " HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer " .. key .. of
      .. "\r\nTollgate-User: " .. letter .. ("%07d"):format(i)
      .. "\r\nContent-Type: application/json\r\nContent-Length: 200\r\n\r\n" .. bodies[quantity(i)]
      .. letters(i) .. '"}'
  end
end

-- wrk asks for one request before it starts, to look at it; that one is not sent.
sent, units, first, last = -1, 0, 0, 0
local deadline

function request()
  local now = clock()
  if sent < 0 then
    sent = 0
    return requests[0]
  end
  if not deadline then
    first, deadline = now, now + length
  elseif now >= deadline then
    last = now
    return ""
  end
  local i = draw()
  sent = sent + 1
  units = units + quantity(i)
  return requests[i]
end

function done(summary, latency)
  local thread = threads[1]
  local e = summary.errors
  print(("RESULT {\"sent\":%d,\"units\":%d,\"responses\":%d,\"seconds\":%.6f,"
    .. "\"errors\":{\"connect\":%d,\"read\":%d,\"write\":%d,\"status\":%d,\"timeout\":%d},"
    .. "\"p50_us\":%d,\"p99_us\":%d,\"p999_us\":%d}"):format(
    thread:get("sent"), thread:get("units"), summary.requests,
    thread:get("last") - thread:get("first"),
    e.connect, e.read, e.write, e.status, e.timeout,
    latency:percentile(50), latency:percentile(99), latency:percentile(99.9)))
end
