-- Cycles that are long over: they are closed in one step, and their accounts go piece by piece.

-- The cycle of an account.
local function period_of(key)
    local a, b, c, d = string.byte(key, 17, 20)
    return ((a * 256 + b) * 256 + c) * 256 + d
end

-- What a user owes; nothing of any other account.
local function owed(key, stored)
    if string.byte(key, 21) ~= OVERDRAFT then return 0 end
    return math.max(-remaining(stored), 0)
end

-- Adds to what is owed in a cycle what an account owes more by now, or takes away what it owes less.
function Batch:put_owed(key)
    local more, period = owed(key, self.accounts[key]) - (self.owed[key] or 0), period_of(key)
    if more == 0 or period < self.closed then return end
    local meta, name = self.keys[META], self.names[key] or redis.call('HGET', self.keys[NAMES], key)
    local field = string.format('owed:%d:%s', period, string.match(name, '^[^/]*'))
    if redis.call('HINCRBY', meta, field, string.format('%.0f', more)) <= 0 then
        redis.call('HDEL', meta, field)
    end
end

-- Forgets what was owed in cycles that are closed: it stays owed, and nobody is shown it any more.
function Batch:forget_owed()
    local gone = {}
    for _, field in ipairs(redis.call('HKEYS', self.keys[META])) do
        local period = tonumber(string.match(field, '^owed:(%d+):'))
        if period and period < self.closed then gone[#gone + 1] = field end
    end
    call_many('HDEL', self.keys[META], gone)
end

-- Whether a hold keeps cycles before `below` open: it names an account of one of them, or began so early
-- that what it may still take from can be of one.
local function keeps(hold, below, not_before)
    if hold[H_AT] < not_before then return true end
    local named = hold[H_NAMED]
    for at = 3, #named, 6 do
        if named[at] > 0 and named[at] < below then return true end
    end
    return false
end

-- Whether no open hold keeps these cycles open, as far as all of them can be looked at.
function Batch:are_free(below, not_before)
    if self.counts.holds > MOST_LOOKED_AT then return false end
    for charge in pairs(self.holds_changed) do
        local hold = self.holds[charge]
        if hold and keeps(hold, below, not_before) then return false end
    end
    local holds = redis.call('HGETALL', self.keys[HOLDS])
    for at = 2, #holds, 2 do
        if keeps(cmsgpack.unpack(holds[at]), below, not_before) then return false end
    end
    return true
end

-- The last days on which something was recorded, in order.
function Batch:days()
    local days = redis.call('HGET', self.keys[META], 'days')
    return days and cmsgpack.unpack(days) or {}
end

-- Adds the days of a batch to those that are known, of which the last DAYS stay.
function Batch:put_days()
    local days, known = self:days(), {}
    for _, day in ipairs(days) do known[day] = true end
    for day in pairs(self.new_days) do
        if not known[day] then days[#days + 1] = day end
    end
    table.sort(days)
    while #days > DAYS do table.remove(days, 1) end
    redis.call('HSET', self.keys[META], 'day', string.format('%.0f', days[#days]), 'days',
        cmsgpack.pack(days))
end

-- Closes the cycles before a label, unless something open keeps them, or the days are not there any more
-- from which somebody knew that they are over: nothing is ever taken from them again.
function Batch:close(op)
    local below, at, not_before, day = op[2], op[3], op[4], op[5]
    if below <= self.closed then return {DONE, {}, {}} end
    local days = self:days()
    if #days < DAYS or days[1] < day then return {UNKNOWN} end
    if not self:are_free(below, not_before) then return {UNKNOWN} end
    self.closed, self.closes = below, below
    self.entries[#self.entries + 1] = {CLOSE, '', at, below}
    return {DONE, {}, {}}
end

-- Forgets accounts of cycles that are closed; `is_last` where there are no others before this label.
function Batch:forget_accounts(op)
    local below, keys, is_last = op[2], op[3], op[4]
    if self.closed < below then return {UNKNOWN} end
    for _, key in ipairs(keys) do
        local stored = self.accounts[key]
        if stored and stored[HELD] == 0 and period_of(key) < below then
            self.accounts[key], self.changed[key] = nil, nil
            self.gone[#self.gone + 1] = key
        end
    end
    if is_last then self.forgotten = below end
    return {DONE, {}, {}}
end
