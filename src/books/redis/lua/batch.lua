-- A batch: what it can touch is read first, and what it came to is written last.

local STEPS = {
    [HOLD] = Batch.hold, [RESOLVE] = Batch.resolve, [AMEND] = Batch.amend, [END] = Batch.finish,
    [ADJUST] = Batch.adjust, [READ] = Batch.read, [SWEEP] = Batch.sweep, [LOOK] = Batch.look,
    [FIND] = Batch.find, [CLOSE] = Batch.close, [FORGET] = Batch.forget_accounts,
}

-- Reads all that the operations of a batch can touch; of what is done again, with the replies that it
-- had.
function Batch:load(ops, replies)
    local keys = self.keys
    local accounts, holds, once, ended = {}, {}, {}, {}
    local function named(list)
        for _, account in ipairs(list) do accounts[account[A_KEY]] = true end
    end
    local function key(field)
        once[field], once[string.sub(field, 1, 8)] = true, true
    end
    for _, op in ipairs(ops) do
        local kind = op[1]
        if kind == HOLD then
            holds[op[2]] = true
            named(op[3])
            if op[8] then key(op[8][1]) end
        elseif kind == RESOLVE then
            holds[op[2]] = true
            named(op[5])
        elseif kind == AMEND then
            holds[op[2]] = true
            named(op[3])
            for _, field in ipairs(op[12] and op[12][1] or {}) do key(field) end
        elseif kind == END or kind == LOOK then
            holds[op[2]] = true
        elseif kind == FIND then
            for _, field in ipairs(type(op[2]) == 'table' and op[2] or {op[2]}) do
                once[field] = true
            end
        elseif kind == ADJUST then
            accounts[op[2][A_KEY]] = true
            if op[6] then key(op[6][1]) end
        elseif kind == READ then
            named(op[2])
        elseif kind == FORGET then
            for _, account in ipairs(op[3]) do accounts[account] = true end
        elseif kind == SWEEP then
            local before = string.format('(%.0f', op[2])
            self.swept = redis.call('ZRANGEBYSCORE', keys[KEPT], '-inf', before, 'LIMIT', 0, op[3])
            for _, field in ipairs(self.swept) do
                if #field == CHARGE_BYTES then
                    ended[field] = true
                elseif #field == KEY_BYTES then
                    key(field)
                end
            end
        end
    end
    for index, op in ipairs(ops) do
        local hold, _, ended_as
        if replies then hold, _, ended_as = carried(replies[index]) end
        if hold then
            for at = 1, #hold[H_LEGS], 3 do accounts[hold[H_LEGS][at]] = true end
            if hold[H_ONCE] then key(hold[H_ONCE][1]) end
            for _, field in ipairs(hold[H_NAMES] or {}) do key(field) end
        end
        if ended_as then
            for at = 1, #ended_as[E_LEGS], 3 do accounts[ended_as[E_LEGS][at]] = true end
            if ended_as[E_ONCE] then key(ended_as[E_ONCE][1]) end
        end
        if replies and holds[op[2]] then ended[op[2]] = true end
    end
    self.holds = fetch(keys[HOLDS], holds)
    for charge, bytes in pairs(self.holds) do
        local hold = cmsgpack.unpack(bytes)
        self.holds[charge] = hold
        for at = 1, #hold[H_LEGS], 3 do accounts[hold[H_LEGS][at]] = true end
        for at = 2, #hold[H_NAMED], 6 do accounts[hold[H_NAMED][at]] = true end
        if hold[H_ONCE] then key(hold[H_ONCE][1]) end
        for _, field in ipairs(hold[H_NAMES] or {}) do key(field) end
    end
    for _, op in ipairs(ops) do
        local resolves = op[1] == RESOLVE or op[1] == AMEND
        if op[1] == END or (resolves and not self.holds[op[2]]) then ended[op[2]] = true end
    end
    self.ended, self.ended_were = fetch(keys[ENDED], ended), {}
    for charge, bytes in pairs(self.ended) do
        local how = cmsgpack.unpack(bytes)
        self.ended[charge], self.ended_were[charge] = how, true
        if how[E_LEGS] then
            for at = 1, #how[E_LEGS], 3 do accounts[how[E_LEGS][at]] = true end
            for at = 2, #how[E_NAMED], 6 do accounts[how[E_NAMED][at]] = true end
            if how[E_ONCE] then key(how[E_ONCE][1]) end
        end
    end
    self.accounts = fetch(keys[ACCOUNTS], accounts)
    for field, bytes in pairs(self.accounts) do
        self.accounts[field] = {cmsgpack.unpack(bytes)}
        self.owed[field] = owed(field, self.accounts[field])
    end
    self.once = fetch(keys[ONCE], once)
    for field, bytes in pairs(self.once) do self.once[field] = cmsgpack.unpack(bytes) end
    self.were = {}
    for charge in pairs(self.holds) do self.were[charge] = self.holds[charge][H_EXPIRES] end
    self.once_were = {}
    for field in pairs(self.once) do self.once_were[field] = true end
end

-- Writes what a batch came to. Nothing in here can be refused but the ledger's entry, which comes
-- first.
function Batch:write()
    local keys = self.keys
    local counts = self.counts
    counts.seq = counts.seq + 1
    local entry = cmsgpack.pack({self.session, self.number, self.entries, self.before})
    redis.call('XADD', keys[LEDGER], string.format('%.0f-0', counts.seq), 'b', entry)
    local put, gone, rise, fall = {}, {}, {}, {}
    for key in pairs(self.changed) do
        local a = self.accounts[key]
        put[#put + 1] = key
        put[#put + 1] = cmsgpack.pack(a[1], a[2], a[3], a[4], a[5], a[6])
        self:put_owed(key)
    end
    call_many('HSET', keys[ACCOUNTS], put)
    call_many('HSET', keys[NAMES], self.new_names)
    call_many('HDEL', keys[ACCOUNTS], self.gone)
    call_many('HDEL', keys[NAMES], self.gone)
    counts.accounts = counts.accounts + #self.new_names / 2 - #self.gone
    put = {}
    for charge in pairs(self.holds_changed) do
        local hold, was = self.holds[charge], self.were[charge]
        if hold then
            put[#put + 1] = charge
            put[#put + 1] = cmsgpack.pack(hold)
            if not was then counts.holds = counts.holds + 1 end
            if hold[H_EXPIRES] > 0 and hold[H_EXPIRES] ~= was then
                rise[#rise + 1] = hold[H_EXPIRES]
                rise[#rise + 1] = charge
                if not was or was == 0 then counts.ending = counts.ending + 1 end
            end
        elseif was then
            gone[#gone + 1] = charge
            counts.holds = counts.holds - 1
            if was > 0 then
                fall[#fall + 1] = charge
                counts.ending = counts.ending - 1
            end
        end
    end
    call_many('HSET', keys[HOLDS], put)
    call_many('HDEL', keys[HOLDS], gone)
    call_many('ZADD', keys[ENDING], rise)
    call_many('ZREM', keys[ENDING], fall)
    put, gone, rise = {}, {}, {}
    for field in pairs(self.once_changed) do
        local kept = self.once[field]
        if kept then
            put[#put + 1] = field
            put[#put + 1] = cmsgpack.pack(kept)
        elseif self.once_were[field] then
            gone[#gone + 1] = field
        end
    end
    for field, at in pairs(self.kept) do
        rise[#rise + 1] = at
        rise[#rise + 1] = field
    end
    call_many('HSET', keys[ONCE], put)
    call_many('HDEL', keys[ONCE], gone)
    call_many('ZREM', keys[KEPT], self.unkept)
    if #self.replies_gone > 0 then
        call_many('HDEL', keys[META], self.replies_gone)
        redis.call('HINCRBY', keys[META], 'left', -#self.replies_gone)
    end
    call_many('ZADD', keys[KEPT], rise)
    put, gone = {}, {}
    for charge in pairs(self.ended_changed) do
        if self.ended[charge] then
            put[#put + 1] = charge
            put[#put + 1] = cmsgpack.pack(self.ended[charge])
        elseif self.ended_were[charge] then
            gone[#gone + 1] = charge
        end
    end
    call_many('HSET', keys[ENDED], put)
    call_many('HDEL', keys[ENDED], gone)
    put = {}
    for index, name in ipairs(COUNTS) do
        put[2 * index - 1], put[2 * index] = name, string.format('%.0f', counts[name])
    end
    redis.call('HSET', keys[META], unpack(put))
    if next(self.new_days) then self:put_days() end
    if self.closes then
        redis.call('HSET', keys[META], 'closed', self.closes)
        self:forget_owed()
    end
    if self.forgotten then redis.call('HSET', keys[META], 'forgotten', self.forgotten) end
end
