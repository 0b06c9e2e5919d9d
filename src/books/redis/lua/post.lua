-- What operations take of accounts, and what they change of them.

-- A batch at work.
local Batch = {}
Batch.__index = Batch

-- An account that ends with its cycle, and whose cycle is closed: whatever is asked of it, it is
-- empty.
function Batch:is_closed(account)
    return account[A_ENDS] > 0 and account[A_ENDS] < self.closed
end

-- Whether one of the accounts that a hold named is of a closed cycle.
function Batch:is_over(named)
    for at = 3, #named, 6 do
        if named[at] > 0 and named[at] < self.closed then return true end
    end
    return false
end

-- The balance of an account under the newer of its two grants.
function Batch:balance(account)
    if self:is_closed(account) then return {0, 0, 0, 0} end
    local stored = self.accounts[account[A_KEY]]
    local base = 0
    if is_newer(account, stored) then
        base = account[A_BASE]
    elseif stored then
        base = stored[BASE]
    end
    if not stored then return {base, 0, 0, 0} end
    return {base, stored[ADJUSTED], stored[HELD], stored[CAPTURED]}
end

-- The account to change, under the newer of its two grants; says so to the entry where that is a
-- change.
function Batch:open(account, openings)
    local key = account[A_KEY]
    local stored = self.accounts[key]
    local changed = false
    if not stored then
        stored = {0, 0, 0, 0, 0, 0}
        self.accounts[key] = stored
        self.new_names[#self.new_names + 1] = key
        self.new_names[#self.new_names + 1] = account[A_NAME]
        self.names[key] = account[A_NAME]
        changed = true
    end
    if is_newer(account, stored) then
        changed = changed or account[A_BASE] ~= stored[BASE]
        stored[BASE], stored[EPOCH], stored[NUMBER] =
            account[A_BASE], account[A_EPOCH], account[A_NUMBER]
    end
    if changed then
        openings[#openings + 1] =
            {key, account[A_NAME], stored[BASE], stored[EPOCH], stored[NUMBER]}
    end
    self.changed[key] = true
    return stored
end

-- Balances by slot, flat: slot, base, adjusted, held, captured.
local function put_view(view, slot, balance)
    local at = #view
    view[at + 1], view[at + 2], view[at + 3], view[at + 4], view[at + 5] =
        slot, balance[1], balance[2], balance[3], balance[4]
end

-- Takes the legs that were taken before, whatever their accounts have, and names the accounts that
-- were seen then. What a cycle gave that is closed by now is over.
function Batch:post_again(accounts, was, side, openings)
    local taken, view, order, legs = was[2], was[3], {}, {}
    for at = 1, #taken, 3 do
        local account, last = accounts[taken[at] + 1], #legs
        if not self:is_closed(account) then
            local stored = self:open(account, openings)
            stored[side] = stored[side] + taken[at + 2]
            legs[last + 1], legs[last + 2], legs[last + 3] = taken[at], taken[at + 1], taken[at + 2]
        end
    end
    for at = 1, #view, 5 do order[#order + 1] = view[at] end
    return DONE, legs, {}, order
end

-- Applies a post to `side` of its accounts (HELD or CAPTURED): all of it, or nothing. Returns what
-- became of it, the legs it took (flat: slot, kind, amount), and a view of all that it names. What `was`
-- is the reply to is done again.
function Batch:post(accounts, sources, look, side, openings, was)
    if was then return self:post_again(accounts, was, side, openings) end
    local seen, order = {}, {}
    for _, source in ipairs(sources) do
        local payers = source[5]
        for at = 1, #payers, 3 do
            for _, slot in ipairs({payers[at], payers[at + 2]}) do
                if slot >= 0 and not seen[slot] then
                    seen[slot] = self:balance(accounts[slot + 1])
                    order[#order + 1] = slot
                end
            end
        end
    end
    local legs, fits, in_range = {}, true, true
    local function have(slot, cap)
        local own = available(seen[slot])
        if cap < 0 then return own end
        return math.min(own, available(seen[cap]))
    end
    local function debit(slot, kind, amount)
        local balance = seen[slot]
        if amount > MAX - (balance[HELD] + balance[CAPTURED]) then in_range = false end
        -- Nothing can be forced on what is closed.
        if self:is_closed(accounts[slot + 1]) then in_range = false end
        balance[side] = balance[side] + amount
        local at = #legs
        legs[at + 1], legs[at + 2], legs[at + 3] = slot, kind, amount
    end
    for _, source in ipairs(sources) do
        local take, below, solvent, forced, payers =
            source[1], source[2], source[3], source[4], source[5]
        local total = 0
        for at = 1, #payers, 3 do
            total = total + have(payers[at], payers[at + 2])
            if solvent and remaining(seen[payers[at]]) < 0 then fits = false end
        end
        if (not forced and total < take) or (below >= 0 and total >= below) then fits = false end
        if not fits then break end
        local rest = take
        for at = 1, #payers, 3 do
            local slot, kind, cap = payers[at], payers[at + 1], payers[at + 2]
            local amount = rest
            if not forced then amount = math.min(rest, have(slot, cap)) end
            if amount > 0 then
                rest = rest - amount
                debit(slot, kind, amount)
                if cap >= 0 then debit(cap, CAP, amount) end
                if not in_range then return RANGE end
            end
        end
        -- Payers that share a cap can give less together than each by itself.
        if rest > 0 then
            fits = false
            break
        end
    end
    local view = {}
    if fits then
        for at = 1, #legs, 3 do
            local stored = self:open(accounts[legs[at] + 1], openings)
            stored[side] = stored[side] + legs[at + 2]
        end
    end
    for _, slot in ipairs(order) do put_view(view, slot, self:balance(accounts[slot + 1])) end
    for _, slot in ipairs(look) do
        if not seen[slot] then
            seen[slot] = true
            order[#order + 1] = slot
            put_view(view, slot, self:balance(accounts[slot + 1]))
        end
    end
    if not fits then return SHORT, legs, view end
    return DONE, legs, view, order
end

-- Legs by account instead of by slot.
local function by_account(legs, accounts)
    local named = {}
    for at = 1, #legs, 3 do
        named[at], named[at + 1], named[at + 2] =
            accounts[legs[at] + 1][A_KEY], legs[at + 1], legs[at + 2]
    end
    return named
end

-- Changes what an account is granted. Under a key that is done once, whatever is asked how often.
function Batch:adjust(op, was)
    local account, delta, at, memo, once = op[2], op[3], op[4], op[5], op[6]
    if once and was then
        if self.once[once[1]] then return {DONE, {}, {}} end
    elseif once then
        local status, kept = self:key_begins(once, '')
        if status == KNOWN then
            if kept[2] ~= once[3] then return {REUSED} end
            local view = {}
            put_view(view, 0, self:balance(account))
            return {AGAIN, {}, view}
        end
        if status then return {status} end
    end
    if self:is_closed(account) then
        if was then return {DONE, {}, {}} end
        return {CLOSED}
    end
    local before = self:balance(account)
    local sum = before[ADJUSTED] + delta
    if math.abs(sum) > MAX or math.abs(delta) > MAX then return {RANGE} end
    if not was and delta > 0 and before[BASE] - before[CAPTURED] + sum > MAX then return {RANGE} end
    local openings = {}
    local stored = self:open(account, openings)
    stored[ADJUSTED] = sum
    if once then
        self:key_begun(once, '', at)
        self:key_captured(once[1])
    end
    self:record({ADJUST, once and once[1] .. once[3] or '', at, openings, account[A_KEY], delta, memo})
    local view = {}
    put_view(view, 0, self:balance(account))
    return {DONE, {}, view}
end

function Batch:read(op)
    local view = {}
    for index, account in ipairs(op[2]) do put_view(view, index - 1, self:balance(account)) end
    return {DONE, {}, view}
end
