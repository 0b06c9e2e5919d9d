-- Keys under which a charge is made once, and names under which others find it.

-- Where the key of a charge stands: in `once` under its scope.
function Batch:key_begins(once, charge)
    local field, scope, request, before, most_of_scope, most =
        once[1], once[2], once[3], once[4], once[5], once[6]
    local kept = self.once[field]
    if kept then
        if not (kept[3] and kept[4] < before) then return KNOWN, kept end
        self:key_ends(field)
    end
    local count = self.once[scope] or 0
    if count >= most_of_scope or self.counts.keys >= most then return TOO_MANY_KEYS end
    return nil
end

function Batch:key_begun(once, charge, at)
    self:key_put(once[1], once[2],
        {charge, once[3], false, at, self.before and self.before[2]})
end

function Batch:key_put(field, scope, value)
    self.once[field] = value
    if not self.once[scope] then self.counts.scopes = self.counts.scopes + 1 end
    self.once[scope] = (self.once[scope] or 0) + 1
    self.counts.keys = self.counts.keys + 1
    self.once_changed[field], self.once_changed[scope] = true, true
end

-- The key of a hold that is done again. Of several that had it one after the other the last one has it.
function Batch:key_begun_again(once, charge, at)
    local kept = self.once[once[1]]
    if kept and (kept[3] or (kept[5] and kept[5] > self.before[2])) then return end
    if kept then self:key_ends(once[1]) end
    self:key_begun(once, charge, at)
end

-- A key is kept from now on, until it is forgotten in its time.
function Batch:key_captured(field)
    local known = self.once[field]
    known[3] = true
    self.once_changed[field] = true
    self.kept[field] = known[4]
    self.counts.kept = self.counts.kept + 1
end

function Batch:key_ends(field)
    local kept, scope = self.once[field], string.sub(field, 1, 8)
    if kept[3] then
        self.kept[field] = nil
        self.unkept[#self.unkept + 1] = field
        self.counts.kept = self.counts.kept - 1
    end
    self.once[field] = nil
    local count = self.once[scope] - 1
    if count == 0 then
        count = nil
        self.counts.scopes = self.counts.scopes - 1
    end
    self.once[scope] = count
    self.counts.keys = self.counts.keys - 1
    self.once_changed[field], self.once_changed[scope] = true, true
end

-- Gives an open charge names, as far as there is room: one more name counts like a key.
function Batch:give_names(charge, hold, names)
    local fields, most_of_scope, most, most_of_name = names[1], names[2], names[3], names[4]
    local given, has = copy(hold[H_NAMES] or {}), {}
    for _, field in ipairs(given) do has[field] = true end
    for _, field in ipairs(fields) do
        local scope, open = string.sub(field, 1, 8), self.once[field]
        if has[field] then
            -- It was given before.
        elseif open and #open[1] < most_of_name then
            open[1][#open[1] + 1] = charge
            self.once_changed[field] = true
            given[#given + 1] = field
        elseif not open and (self.once[scope] or 0) < most_of_scope and self.counts.keys < most then
            self:key_put(field, scope, {{charge}})
            given[#given + 1] = field
        end
    end
    hold[H_NAMES] = given
end

function Batch:names_end(charge, hold)
    for _, field in ipairs(hold[H_NAMES] or {}) do
        local open, rest = self.once[field], {}
        for _, other in ipairs(open and open[1] or {}) do
            if other ~= charge then rest[#rest + 1] = other end
        end
        if open and #rest == 0 then
            self:key_ends(field)
        elseif open then
            open[1] = rest
            self.once_changed[field] = true
        end
    end
end
