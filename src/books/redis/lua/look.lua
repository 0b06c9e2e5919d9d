-- What only reads, and what forgets in its time.

-- An open hold, for a reader: how it ends, what is kept, the hold, and the names of its legs.
function Batch:describe(hold, state, kept)
    return {state, kept, hold, self:names_of(hold[H_LEGS])}
end

function Batch:look(op)
    local hold = self.holds[op[2]]
    if not hold then return {UNKNOWN} end
    return {DONE, {}, {}, self:describe(hold, 0, {})}
end

-- The charge that has a key; of several fields, the open charges that have one of these names.
function Batch:find(op)
    if type(op[2]) == 'table' then
        local charges = {}
        for _, field in ipairs(op[2]) do
            local open = self.once[field]
            for _, charge in ipairs(open and open[1] or {}) do charges[#charges + 1] = charge end
        end
        return {FOUND, charges}
    end
    local kept = self.once[op[2]]
    if not kept then return {UNKNOWN} end
    return {KNOWN, kept[1], kept[2], kept[3]}
end

-- The mark of a session; nothing of one that is not registered.
function Batch:mark_of(session)
    return redis.call('HGET', self.keys[SESSIONS], session) or ''
end

-- Forgets what is forgotten in its time, and was there before an instant.
function Batch:sweep()
    -- Another one in this batch finds nothing more.
    local swept = self.swept
    self.swept = {}
    for _, field in ipairs(swept) do
        if #field == CHARGE_BYTES then
            self:forget(field)
        elseif #field > KEY_BYTES then
            self.replies_gone[#self.replies_gone + 1] = field
            self.unkept[#self.unkept + 1] = field
            self.counts.kept = self.counts.kept - 1
        elseif self.once[field] and self.once[field][3] then
            self:key_ends(field)
        end
    end
    return {DONE, {}, {}}
end
