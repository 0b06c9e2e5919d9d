-- Charges that are not open: holds that end without their owner, and what is captured late.

-- What is said of a charge that is not open. One whose time was over is as if it had never been.
function Batch:already(charge)
    local ended = self.ended[charge]
    if not ended or ended[E_STATE] == EXPIRED_STATE then return {UNKNOWN} end
    return {ALREADY, ended[E_STATE]}
end

-- Captures legs whatever their accounts have. False, and nothing is changed, where an account would
-- have given more than there can be.
function Batch:force(legs)
    for at = 1, #legs, 3 do
        local stored = self.accounts[legs[at]]
        if legs[at + 2] > MAX - (stored[HELD] + stored[CAPTURED]) then
            self:unforce(legs, at - 1)
            return false
        end
        stored[CAPTURED] = stored[CAPTURED] + legs[at + 2]
        self.changed[legs[at]] = true
    end
    return true
end

function Batch:unforce(legs, last)
    for at = 1, last, 3 do
        local stored = self.accounts[legs[at]]
        stored[CAPTURED] = stored[CAPTURED] - legs[at + 2]
    end
end

-- What is kept of what a charge took, as legs of their own; nothing where an account is gone.
function Batch:late_legs(legs, keep)
    local late = {}
    for at = 1, #legs, 3 do
        local amount = math.min(keep[(at + 2) / 3] or 0, legs[at + 2])
        if not self.accounts[legs[at]] then return nil end
        if amount > 0 then
            local last = #late
            late[last + 1], late[last + 2], late[last + 3] = legs[at], legs[at + 1], amount
        end
    end
    return late
end

-- A resolution of a charge that is not open. `late` is the memo of one that may come after the charge
-- was voided without its owner: then it is captured all the same. So is one that has ended in its time,
-- where its capture was promised to somebody (D30).
function Batch:resolve_ended(op, was)
    local charge, keep, accounts, sources, look, at, note, answer, late, promised =
        op[2], op[4], op[5], op[6], op[7], op[8], op[10], op[11], op[12], op[14]
    local ended, openings, had_key = self.ended[charge], {}, nil
    if was then
        local _, names, had_ended
        _, names, had_ended, had_key = carried(was)
        if had_ended and not ended then
            ended = had_ended
            if self:is_over(ended[E_NAMED]) then return {DONE, {}, {}} end
            self:open_legs(ended[E_LEGS], ended[E_NAMED], names, openings)
        end
    end
    if ended and ended[E_STATE] == EXPIRED_STATE and not promised then late = false end
    -- Nothing is captured in a cycle that is closed.
    if ended and ended[E_NAMED] and self:is_over(ended[E_NAMED]) then late = false end
    local kept = ended and ended[E_LEGS] and late and self:late_legs(ended[E_LEGS], keep)
    if not kept then return self:already(charge) end
    if not self:force(kept) then return {RANGE} end
    local legs, all = {}, copy(kept)
    if sources then
        local status, taken, view =
            self:post(accounts, sources, look, CAPTURED, openings, was)
        if status ~= DONE then
            self:unforce(kept, #kept)
            if status == SHORT then return {SHORT, view} end
            return {status}
        end
        legs = taken
        for _, value in ipairs(by_account(taken, accounts)) do all[#all + 1] = value end
    end
    if was then
        self:remember(charge, {CAPTURED_STATE}, at, math.huge)
    else
        self:put_ended(charge, {CAPTURED_STATE})
    end
    -- Whoever repeats the request under its key is told so, unless another charge has the key by now.
    local once = ended[E_ONCE]
    local has_key = once and not self.once[once[1]]
    if was then has_key = once and had_key end
    if has_key then
        if self.once[once[1]] then self:key_ends(once[1]) end
        self:key_begun({once[1], string.sub(once[1], 1, 8), once[2]}, charge, once[3])
        self:key_captured(once[1])
    end
    self:record_end({RESOLVE, charge, at, openings, all, CAPTURED_STATE, {}, late, note, answer},
        has_key and HAS_KEY or 0)
    local reply = {DONE, legs, self:view_of(ended[E_NAMED])}
    if not was then
        reply[4], reply[5] = false, cmsgpack.pack(
            {false, self:names_of(ended[E_LEGS]), ended, has_key or false})
    end
    return reply
end

function Batch:put_ended(charge, ended)
    self.ended[charge] = ended
    self.ended_changed[charge] = true
end

-- Remembers how a charge ended without its owner, while there is room.
function Batch:remember(charge, ended, at, most)
    if not self.ended[charge] then
        if self.counts.ended >= most then return end
        self.counts.ended, self.counts.kept = self.counts.ended + 1, self.counts.kept + 1
    end
    self.kept[charge] = at
    self:put_ended(charge, ended)
end

function Batch:forget(charge)
    if not self.ended[charge] then return end
    self:put_ended(charge, nil)
    self.kept[charge] = nil
    self.unkept[#self.unkept + 1] = charge
    self.counts.ended, self.counts.kept = self.counts.ended - 1, self.counts.kept - 1
end

-- Ends a hold without its owner, as it says itself. With `due`, only one whose time is over, and so
-- long ago where it has names: somebody is to ask a last time for what they stand for. With `mark`,
-- only one whose owner has that mark. So many ends are remembered.
function Batch:finish(op, was)
    local charge, at, due, mark, most = op[2], op[3], op[4], op[5], op[6]
    local hold = self.holds[charge]
    if was then
        hold, due, mark = hold or self:carry(charge, was), was[4][1] == EXPIRED_STATE, nil
    end
    if not hold then return {UNKNOWN} end
    if due and not was then
        local wait = hold[H_NAMES] and due or 0
        if hold[H_EXPIRES] == 0 or hold[H_EXPIRES] + wait > at then return {UNKNOWN} end
    end
    if mark and self:mark_of(hold[H_OWNER]) ~= mark then return {UNKNOWN} end
    local finish = hold[H_FINISH]
    local state, keep, memo = CAPTURED_STATE, {}, finish[2]
    if finish[1] == VOID then
        state = VOIDED_STATE
        -- Nobody is in doubt about what ends in its time.
        if due then state, memo = EXPIRED_STATE, '' end
    elseif finish[1] == WHOLE then
        for index = 3, #hold[H_LEGS], 3 do keep[index / 3] = hold[H_LEGS][index] end
    else
        keep = finish[3]
    end
    if was then state, keep = was[4][1], was[4][2] end
    local openings, extra = {}, {}
    if was then keep = self:keep_as_then(hold, was, keep, openings, extra) end
    local kept, more = self:settle(charge, hold, state, keep)
    local ended = {state}
    if state ~= CAPTURED_STATE then
        local once, before = hold[H_ONCE], was and carried(was) or hold
        ended = {state, before[H_LEGS], before[H_NAMED], once and {once[1], once[2], hold[H_AT]}}
        -- There may be many of those, and few of them are captured late.
        if state == EXPIRED_STATE and not was then most = most / 2 end
    end
    self:remember(charge, ended, at, most)
    self:record_end({RESOLVE, charge, at, openings, extra, state, kept, memo, '', ''}, more)
    return {DONE, {}, {}, self:describe(hold, state, kept)}
end
