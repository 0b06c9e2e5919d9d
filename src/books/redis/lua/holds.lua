-- Holds while they are open: they begin, they grow, their owner ends them.

function Batch:record(entry)
    self.entries[#self.entries + 1] = entry
    local day = math.floor(entry[3] / DAY)
    if day ~= self.day then self.new_days[day] = true end
end

-- The end of a charge, with what else is said of it.
function Batch:record_end(entry, more)
    if more > 0 then entry[#entry + 1] = more end
    self:record(entry)
end

-- Puts a hold where it is found, or takes it away.
function Batch:put_hold(charge, hold)
    self.holds[charge] = hold
    self.holds_changed[charge] = true
end

-- What this session has in its reply of another's charge: the hold, or false; the names of its legs'
-- accounts; and where it was captured late, how it had ended, and whether it had its key again.
local function carried(was)
    if not was or was[1] ~= DONE then return false end
    if was[4] then return was[4][3], was[4][4] end
    if not was[5] then return false end
    return unpack(cmsgpack.unpack(was[5]))
end

-- Sees that the accounts of legs are there.
function Batch:open_legs(legs, named, names, openings)
    for at = 1, #legs, 3 do
        local account = {legs[at], 0, 0, 0, 0, names[(at + 2) / 3]}
        for index = 2, #named, 6 do
            if named[index] == legs[at] then
                account[A_ENDS], account[A_BASE], account[A_EPOCH], account[A_NUMBER] =
                    named[index + 1], named[index + 2], named[index + 3], named[index + 4]
            end
        end
        self:open(account, openings)
    end
end

-- Puts back another's hold, with all that it took.
function Batch:carry(charge, was)
    local hold, names = carried(was)
    if not hold or self.ended[charge] or self:is_over(hold[H_NAMED]) then return nil end
    local legs, openings = hold[H_LEGS], {}
    self:open_legs(legs, hold[H_NAMED], names, openings)
    for at = 1, #legs, 3 do
        local stored = self.accounts[legs[at]]
        stored[HELD] = stored[HELD] + legs[at + 2]
    end
    local given = hold[H_NAMES]
    hold[H_NAMES], hold[H_CARRIED] = false, self.before[2]
    if given then self:give_names(charge, hold, {given, math.huge, math.huge, math.huge}) end
    self:put_hold(charge, hold)
    local once = hold[H_ONCE]
    if once then
        self:key_begun_again({once[1], string.sub(once[1], 1, 8), once[2]}, charge, hold[H_AT])
    end
    self:record({HOLD, charge, hold[H_AT], openings, legs, hold[H_DOUBT], hold[H_MEMO],
        hold[H_EXPIRES], once, hold[H_NOTE],
        {hold[H_OWNER], hold[H_FINISH], hold[H_NAMES], hold[H_CARRIED]}})
    return hold
end

function Batch:names_of(legs)
    local names = {}
    for at = 1, #legs, 3 do
        names[#names + 1] = self.names[legs[at]] or redis.call('HGET', self.keys[NAMES], legs[at])
    end
    return names
end

-- What a reply says besides of a hold that others have to do with, so that this session can put it back.
function Batch:with_hold(reply, hold)
    if (hold[H_OWNER] ~= self.session or hold[H_CHANGED]) and not self.before then
        reply[4], reply[5] = false, cmsgpack.pack({hold, self:names_of(hold[H_LEGS]), false})
    end
    return reply
end

function Batch:hold(op, was)
    local charge, accounts, sources, look, at, expires, once, finish, doubt, memo, note =
        op[2], op[3], op[4], op[5], op[6], op[7], op[8], op[9], op[10], op[11], op[12]
    if was and (self.holds[charge] or self.ended[charge]) then return {DONE, {}, {}} end
    for _, account in ipairs(was and accounts or {}) do
        if self:is_closed(account) then return {DONE, {}, {}} end
    end
    if self.holds[charge] then return {RANGE} end
    if once and not was then
        local status, kept = self:key_begins(once, charge)
        if status == KNOWN then return {KNOWN, kept[1], kept[2], kept[3]} end
        if status then return {status} end
    end
    local openings = {}
    local status, legs, view, order =
        self:post(accounts, sources, look, HELD, openings, was)
    if status == RANGE then return {RANGE} end
    if status == SHORT then return {SHORT, view} end
    local named = {}
    for _, slot in ipairs(order) do
        local account = accounts[slot + 1]
        local last = #named
        named[last + 1], named[last + 2], named[last + 3], named[last + 4], named[last + 5],
            named[last + 6] = slot, account[A_KEY], account[A_ENDS], account[A_BASE],
            account[A_EPOCH], account[A_NUMBER]
    end
    local taken = by_account(legs, accounts)
    self:put_hold(charge, {
        self.session, at, expires, once and {once[1], once[3]}, taken, named, #accounts, finish,
        doubt, memo, note,
    })
    if once and was then
        self:key_begun_again(once, charge, at)
    elseif once then
        self:key_begun(once, charge, at)
    end
    self:record({HOLD, charge, at, openings, taken, doubt, memo, expires,
        once and {once[1], once[3]}, note})
    return {DONE, legs, view}
end

-- The balances of the accounts that a hold named, by its slots.
function Batch:view_of(named)
    local view = {}
    for at = 1, #named, 6 do
        local account =
            {named[at + 1], named[at + 2], named[at + 3], named[at + 4], named[at + 5]}
        put_view(view, named[at], self:balance(account))
    end
    return view
end

-- Ends a hold: of each leg so much is captured, the rest returns. Says what is captured, and KEY_LOST
-- where its key is another one's by now.
function Batch:settle(charge, hold, state, keep)
    local legs, kept, more = hold[H_LEGS], {}, 0
    for at = 1, #legs, 3 do
        local key, amount = legs[at], legs[at + 2]
        local index = (at + 2) / 3
        local captured = math.min(keep[index] or 0, amount)
        kept[index] = captured
        local stored = self.accounts[key]
        stored[HELD] = stored[HELD] - amount
        stored[CAPTURED] = stored[CAPTURED] + captured
        self.changed[key] = true
    end
    self:put_hold(charge, nil)
    self:names_end(charge, hold)
    if hold[H_ONCE] then
        local field = hold[H_ONCE][1]
        local known = self.once[field]
        if known and known[1] == charge and not known[3] then
            if state == CAPTURED_STATE then
                self:key_captured(field)
            else
                self:key_ends(field)
            end
        elseif state == CAPTURED_STATE and not (known and known[1] == charge) then
            more = KEY_LOST
        end
    end
    return kept, more
end

-- What was captured late, and is open yet because its void comes later this time, has its key if it had
-- it then.
function Batch:key_as_it_was(charge, hold, was)
    local _, _, ended, had_key = carried(was)
    local once = hold[H_ONCE]
    if not ended or not once then return end
    local known = self.once[once[1]]
    local is_its = known and known[1] == charge
    if known and (is_its ~= had_key) and (had_key or not known[3]) then self:key_ends(once[1]) end
    if had_key and not is_its then
        self:key_begun({once[1], string.sub(once[1], 1, 8), once[2]}, charge, hold[H_AT])
    end
end

-- Ends a hold again that is not what it was when this session ended it: whoever else changed it comes
-- later, and finds it ended. What was kept then is captured as legs of their own, so that nobody has to
-- know which legs it has by now. Returns what is still kept of those.
function Batch:keep_as_then(hold, was, keep, openings, extra)
    local before, names = carried(was)
    if not before or self:is_over(before[H_NAMED]) then return keep end
    local has, legs = hold[H_LEGS], before[H_LEGS]
    local is_same = #has == #legs
    for at = 1, #legs do is_same = is_same and has[at] == legs[at] end
    if is_same then return keep end
    self:open_legs(legs, before[H_NAMED], names, openings)
    for at = 1, #legs, 3 do
        local amount = math.min(keep[(at + 2) / 3] or 0, legs[at + 2])
        if amount > 0 then
            local stored, last = self.accounts[legs[at]], #extra
            stored[CAPTURED] = stored[CAPTURED] + amount
            extra[last + 1], extra[last + 2], extra[last + 3] = legs[at], legs[at + 1], amount
        end
    end
    return {}
end

function Batch:resolve(op, was)
    local charge, state, keep, accounts, sources, look, at, memo, note, answer, most =
        op[2], op[3], op[4], op[5], op[6], op[7], op[8], op[9], op[10], op[11], op[13]
    local hold = self.holds[charge]
    if was then hold = hold or self:carry(charge, was) end
    if not hold then return self:resolve_ended(op, was) end
    if was then self:key_as_it_was(charge, hold, was) end
    local openings, legs, extra = {}, {}, {}
    if sources then
        local status, taken, view =
            self:post(accounts, sources, look, CAPTURED, openings, was)
        if status == RANGE then return {RANGE} end
        if status == SHORT then return {SHORT, view} end
        legs, extra = taken, by_account(taken, accounts)
    end
    if was then keep = self:keep_as_then(hold, was, keep, openings, extra) end
    local kept, more = self:settle(charge, hold, state, keep)
    if was then
        -- Its hold may still come, from whoever made it or changed it.
        self:remember(charge, {state}, at, math.huge)
    elseif most and hold[H_OWNER] ~= self.session and hold[H_EXPIRES] == 0 then
        -- Its owner is still at work on it, and is told at its end.
        self:remember(charge, {state}, at, most)
        more = more + REMEMBERED
    end
    self:record_end({RESOLVE, charge, at, openings, extra, state, kept, memo, note, answer}, more)
    return self:with_hold({DONE, legs, self:view_of(hold[H_NAMED])}, hold)
end

function Batch:amend(op, was)
    local charge, accounts, sources, look, at, expires, finish, note, answer, known, names =
        op[2], op[3], op[4], op[5], op[6], op[7], op[8], op[9], op[10], op[11], op[12]
    local hold = self.holds[charge]
    if was then
        hold = hold or self:carry(charge, was)
        -- Whoever put it back had it with this.
        if hold and hold[H_CARRIED] and self.before[2] < hold[H_CARRIED] then return {DONE, {}, {}} end
    end
    if not hold then return self:already(charge) end
    local before = hold
    hold = copy(hold)
    local openings, legs, taken = {}, {}, {}
    if sources then
        local status, view
        status, legs, view = self:post(accounts, sources, look, HELD, openings, was)
        if status == RANGE then return {RANGE} end
        if status == SHORT then return {SHORT, view} end
        taken = by_account(legs, accounts)
        self:grow(hold, legs, taken, accounts)
    end
    if expires > 0 then hold[H_EXPIRES] = expires end
    if finish then hold[H_FINISH] = finish end
    if note then hold[H_NOTE] = note end
    if names then self:give_names(charge, hold, names) end
    if hold[H_OWNER] ~= self.session then
        hold[H_NAMES], hold[H_CARRIED] = hold[H_NAMES] or false, hold[H_CARRIED] or false
        hold[H_CHANGED] = true
    end
    self:put_hold(charge, hold)
    self:record({AMEND, charge, at, openings, taken, known, expires, note, answer,
        names and hold[H_NAMES] or nil})
    return self:with_hold({DONE, legs, self:view_of(hold[H_NAMED])}, before)
end

-- Adds legs to a hold: one leg for an account and kind, new ones behind those that are there.
function Batch:grow(hold, legs, taken, accounts)
    local has, named = copy(hold[H_LEGS]), copy(hold[H_NAMED])
    hold[H_LEGS], hold[H_NAMED] = has, named
    for at = 1, #taken, 3 do
        local key, kind, amount = taken[at], taken[at + 1], taken[at + 2]
        local found = false
        for index = 1, #has, 3 do
            if has[index] == key and has[index + 1] == kind then
                has[index + 2] = has[index + 2] + amount
                found = true
                break
            end
        end
        if not found then
            local last = #has
            has[last + 1], has[last + 2], has[last + 3] = key, kind, amount
            local is_named = false
            for index = 2, #named, 6 do is_named = is_named or named[index] == key end
            if not is_named then
                local account, end_of = accounts[legs[at] + 1], #named
                named[end_of + 1], named[end_of + 2], named[end_of + 3], named[end_of + 4],
                    named[end_of + 5], named[end_of + 6] = hold[H_SLOTS], key, account[A_ENDS],
                    account[A_BASE], account[A_EPOCH], account[A_NUMBER]
                hold[H_SLOTS] = hold[H_SLOTS] + 1
            end
        end
    end
end
