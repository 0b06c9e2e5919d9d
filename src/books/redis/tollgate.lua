#!lua name=tollgate_1

-- The books of one shard: accounts, open holds, keys, sessions, and the ledger of all changes.
--
-- This is a ledger and knows no policy: what to take from where, and what becomes of a hold whose
-- owner disappears, is said by the gateway with every operation. One call carries a batch of
-- operations. It is worked out on Lua tables first; only when all of it is known to be possible is
-- anything written, the ledger's entry first. So a call does all or nothing.
--
-- Amounts are millionths, at most 2^53 - 1, which a double holds exactly. What an account has given
-- (held and captured) has the same bound, so that every sum below is exact where it matters.
--
-- Keys, all of one hash slot:
--   meta      hash: epoch, seq (of the ledger), closed (cycles before it are), and how much there is
--             of accounts, holds, ending, keys, scopes, kept, ended, sessions; run, opening, since,
--             lost and terms (see "A server that comes back")
--   accounts  hash: key of an account -> base, adjusted, held, captured, epoch, number
--   names     hash: key of an account -> its name
--   holds     hash: charge -> hold (see the H_ constants)
--   ending    sorted set: charges that end by themselves, by when
--   once      hash: scope and key -> charge, request, captured, at, and of what was done again which
--             entry of the ledger it had first; scope and name -> charges that are open under it;
--             scope -> how many keys and names
--   kept      sorted set, what is forgotten in its time: keys of captured charges and of adjustments
--             (24 bytes), by when they were held or made; charges that ended without their owner (16
--             bytes), by when they did
--   sessions  hash: session -> its mark (last number, when it was seen, in which run of the server);
--             session:r -> the reply to that number
--   ledger    stream: an entry for each call that changed something; its ids count from 1: {session,
--             number, records}, and of what was done again {term, seq} that it had first
--   ended     hash: charge that ended without its owner -> how (see the E_ constants)
--
-- Who owns a hold is known by the session that made it. A session that is heard of no more has the
-- same mark as long as that lasts, so whoever ends its holds says which mark he saw: where it is
-- another one by then, the owner is back, and nothing is done (D36).
--
-- A charge that was voided without its owner can be captured all the same, once: what the owner keeps
-- of what it took is captured whatever its accounts have by then, and the entry says it as legs of its
-- own, because the hold is over (f23). What is taken beyond the hold is a post like any other.
--
-- An open charge can have names, under which others than its owner find it; they end with its hold.

-- A server that comes back may have less than it had: an older file, a replica that had not heard of
-- everything. So a shard is open for one run of one server process only (`run`). In another one it is
-- closed, and a new term begins: `terms` says of each from which entry of the ledger on (those of the
-- terms before it are there up to that entry, and what came behind is lost). Every session enters it
-- again and does again, by their numbers, the batches that the server does not know, as they were
-- done: with the legs they took, whatever the accounts have (`again`). The shard opens when all have
-- and nothing was lost, or when it was waited for long enough.
--
-- Of a charge that several sessions had to do with, each does its part again, in any order. Whoever
-- resolved or changed another one's hold has it in his reply (`{..., false, carried}`), and can put it
-- back himself; a hold that comes behind that is not put back again.

local META, ACCOUNTS, NAMES, HOLDS, ENDING, ONCE, KEPT, SESSIONS, LEDGER, ENDED =
    1, 2, 3, 4, 5, 6, 7, 8, 9, 10

local MAX = 9007199254740991

-- An account as an operation names it.
local A_KEY, A_ENDS, A_BASE, A_EPOCH, A_NUMBER, A_NAME = 1, 2, 3, 4, 5, 6
-- An account as it is stored.
local BASE, ADJUSTED, HELD, CAPTURED, EPOCH, NUMBER = 1, 2, 3, 4, 5, 6
-- A hold as it is stored.
local H_OWNER, H_AT, H_EXPIRES, H_ONCE, H_LEGS, H_NAMED, H_SLOTS, H_FINISH, H_DOUBT, H_MEMO, H_NOTE =
    1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11
-- The names that it has; only there where it was given some, or the next is there.
local H_NAMES = 12
-- Of one that was put back by another than its owner: which entry of the ledger has what it was then.
local H_CARRIED = 13
-- A charge that ended without its owner: how; of one that can still be captured what it took, which
-- accounts it named, and the key it was made under, with its request and when it was held.
local E_STATE, E_LEGS, E_NAMED, E_ONCE = 1, 2, 3, 4

-- Kinds of operations, and of entries of the ledger.
local HOLD, RESOLVE, AMEND, END, ADJUST, READ, SWEEP, LOOK, FIND = 1, 2, 3, 4, 5, 6, 7, 8, 9
-- What became of an operation.
local DONE, SHORT, KNOWN, UNKNOWN, CLOSED, RANGE, TOO_MANY_KEYS, ALREADY = 0, 1, 2, 3, 4, 5, 6, 7
local FOUND, AGAIN, REUSED = 8, 9, 10
-- What becomes of a hold without its owner.
local VOID, WHOLE, USED = 0, 1, 2
-- How a charge ends.
local CAPTURED_STATE, VOIDED_STATE, EXPIRED_STATE = 1, 2, 3
-- The kind of a leg that counts against the cap of the one before it.
local CAP = 5

-- What is counted of a shard, in `meta`.
local COUNTS =
    {'seq', 'accounts', 'holds', 'ending', 'keys', 'scopes', 'kept', 'ended', 'sessions'}
-- How long the id of a charge is; whatever else is forgotten in its time has longer names.
local CHARGE_BYTES = 16

-- Redis passes a bounded number of values at once from a table.
local CHUNK = 1000

local function call_many(command, key, values)
    local at, count = 1, #values
    while at <= count do
        local last = math.min(at + CHUNK - 1, count)
        redis.call(command, key, unpack(values, at, last))
        at = last + 1
    end
end

-- What was recorded or replied of a table must not change with it later in the batch.
local function copy(list)
    local copied = {}
    for index, value in ipairs(list) do copied[index] = value end
    return copied
end

-- The books' clock, in microseconds since the Unix epoch.
local function now()
    local time = redis.call('TIME')
    return time[1] * 1000000 + time[2]
end

-- Reads fields of a hash into a table, those that are there.
local function fetch(key, wanted)
    local fields, found = {}, {}
    for field in pairs(wanted) do fields[#fields + 1] = field end
    local at, count = 1, #fields
    while at <= count do
        local last = math.min(at + CHUNK - 1, count)
        local values = redis.call('HMGET', key, unpack(fields, at, last))
        for index = 1, last - at + 1 do
            if values[index] then found[fields[at + index - 1]] = values[index] end
        end
        at = last + 1
    end
    return found
end

-- What an account has left; below zero for one in the red. Exact wherever it is not beyond MAX.
local function remaining(balance)
    return balance[BASE] - (balance[HELD] + balance[CAPTURED]) + balance[ADJUSTED]
end

local function available(balance)
    return math.min(math.max(remaining(balance), 0), MAX)
end

local function is_newer(account, stored)
    local epoch, number = 0, 0
    if stored then epoch, number = stored[EPOCH], stored[NUMBER] end
    return account[A_EPOCH] > epoch or (account[A_EPOCH] == epoch and account[A_NUMBER] > number)
end

-- This run of this server process, as long as it lasts: a library is read anew by each.
local process
local function this_run()
    if not process then process = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)') end
    return process
end

-- A batch at work.
local Batch = {}
Batch.__index = Batch

-- An account that ends with its cycle, and whose cycle is closed: whatever is asked of it, it is
-- empty.
function Batch:is_closed(account)
    return account[A_ENDS] > 0 and account[A_ENDS] < self.closed
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

-- Applies a post to `side` of its accounts (HELD or CAPTURED): all of it, or nothing. Returns what
-- became of it, the legs it took (flat: slot, kind, amount), and a view of all that it names.
function Batch:post(accounts, sources, look, side, openings)
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

-- Takes the legs that were taken before, whatever their accounts have, and names the accounts that
-- were seen then.
function Batch:post_again(accounts, was, side, openings)
    local legs, view, order = was[2], was[3], {}
    for at = 1, #legs, 3 do
        local stored = self:open(accounts[legs[at] + 1], openings)
        stored[side] = stored[side] + legs[at + 2]
    end
    for at = 1, #view, 5 do order[#order + 1] = view[at] end
    return DONE, legs, {}, order
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

function Batch:record(entry)
    self.entries[#self.entries + 1] = entry
end

-- Puts a hold where it is found, or takes it away.
function Batch:put_hold(charge, hold)
    self.holds[charge] = hold
    self.holds_changed[charge] = true
end

-- What this session has in its reply of another's charge: the hold, or false; the names of its legs'
-- accounts; and how it had ended where it was captured late.
local function carried(was)
    if not was then return false end
    if was[4] then return was[4][3], was[4][4] end
    if not was[5] then return false end
    local hold, names, ended = unpack(cmsgpack.unpack(was[5]))
    return hold, names, ended
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
    if not hold or self.ended[charge] then return nil end
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
        hold[H_EXPIRES], once, hold[H_NOTE]})
    return hold
end

function Batch:names_of(legs)
    local names = {}
    for at = 1, #legs, 3 do
        names[#names + 1] = self.names[legs[at]] or redis.call('HGET', self.keys[NAMES], legs[at])
    end
    return names
end

-- What a reply says besides of another's hold, so that this session can put it back.
function Batch:with_hold(reply, hold)
    if hold[H_OWNER] ~= self.session and not self.before then
        reply[4], reply[5] = false, cmsgpack.pack({hold, self:names_of(hold[H_LEGS]), false})
    end
    return reply
end

function Batch:hold(op, was)
    local charge, accounts, sources, look, at, expires, once, finish, doubt, memo, note =
        op[2], op[3], op[4], op[5], op[6], op[7], op[8], op[9], op[10], op[11], op[12]
    if was and (self.holds[charge] or self.ended[charge]) then return {DONE, {}, {}} end
    if self.holds[charge] then return {RANGE} end
    if once and not was then
        local status, kept = self:key_begins(once, charge)
        if status == KNOWN then return {KNOWN, kept[1], kept[2], kept[3]} end
        if status then return {status} end
    end
    local openings = {}
    local status, legs, view, order
    if was then
        status, legs, view, order = self:post_again(accounts, was, HELD, openings)
    else
        status, legs, view, order = self:post(accounts, sources, look, HELD, openings)
    end
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

-- Ends a hold: of each leg so much is captured, the rest returns.
function Batch:settle(charge, hold, state, keep)
    local legs, kept = hold[H_LEGS], {}
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
        end
    end
    return kept
end

function Batch:resolve(op, was)
    local charge, state, keep, accounts, sources, look, at, memo, note, answer =
        op[2], op[3], op[4], op[5], op[6], op[7], op[8], op[9], op[10], op[11]
    local hold = self.holds[charge]
    if was then hold = hold or self:carry(charge, was) end
    if not hold then return self:resolve_ended(op, was) end
    local openings, legs, extra = {}, {}, {}
    if sources then
        local status, taken, view
        if was then
            status, taken, view = self:post_again(accounts, was, CAPTURED, openings)
        else
            status, taken, view = self:post(accounts, sources, look, CAPTURED, openings)
        end
        if status == RANGE then return {RANGE} end
        if status == SHORT then return {SHORT, view} end
        legs, extra = taken, by_account(taken, accounts)
    end
    local kept = self:settle(charge, hold, state, keep)
    -- Its hold may still come, from whoever made it or changed it.
    if was then self:remember(charge, {state}, at, math.huge) end
    self:record({RESOLVE, charge, at, openings, extra, state, kept, memo, note, answer})
    return self:with_hold({DONE, legs, self:view_of(hold[H_NAMED])}, hold)
end

-- What is said of a charge that is not open.
function Batch:already(charge)
    local ended = self.ended[charge]
    if not ended then return {UNKNOWN} end
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
-- was voided without its owner: then it is captured all the same.
function Batch:resolve_ended(op, was)
    local charge, keep, accounts, sources, look, at, note, answer, late =
        op[2], op[4], op[5], op[6], op[7], op[8], op[10], op[11], op[12]
    local ended, openings = self.ended[charge], {}
    if was and not ended then
        local _, names, had_ended = carried(was)
        ended = had_ended
        if ended then self:open_legs(ended[E_LEGS], ended[E_NAMED], names, openings) end
    end
    local kept = ended and ended[E_LEGS] and late and self:late_legs(ended[E_LEGS], keep)
    if not kept then return self:already(charge) end
    if not self:force(kept) then return {RANGE} end
    local legs, all = {}, copy(kept)
    if sources then
        local status, taken, view
        if was then
            status, taken, view = self:post_again(accounts, was, CAPTURED, openings)
        else
            status, taken, view = self:post(accounts, sources, look, CAPTURED, openings)
        end
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
    if once and not self.once[once[1]] then
        self:key_begun({once[1], string.sub(once[1], 1, 8), once[2]}, charge, once[3])
        self:key_captured(once[1])
    end
    self:record({RESOLVE, charge, at, openings, all, CAPTURED_STATE, {}, late, note, answer})
    local reply = {DONE, legs, self:view_of(ended[E_NAMED])}
    if not was then
        reply[4], reply[5] = false, cmsgpack.pack({false, self:names_of(ended[E_LEGS]), ended})
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
        if was then
            status, legs, view = self:post_again(accounts, was, HELD, openings)
        else
            status, legs, view = self:post(accounts, sources, look, HELD, openings)
        end
        if status == RANGE then return {RANGE} end
        if status == SHORT then return {SHORT, view} end
        taken = by_account(legs, accounts)
        self:grow(hold, legs, taken, accounts)
    end
    if expires > 0 then hold[H_EXPIRES] = expires end
    if finish then hold[H_FINISH] = finish end
    if note then hold[H_NOTE] = note end
    if names then self:give_names(charge, hold, names) end
    self:put_hold(charge, hold)
    self:record({AMEND, charge, at, openings, taken, known, expires, note, answer})
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
    local kept = self:settle(charge, hold, state, keep)
    local ended = {state}
    if state == VOIDED_STATE then
        local once = hold[H_ONCE]
        ended = {state, hold[H_LEGS], hold[H_NAMED], once and {once[1], once[2], hold[H_AT]}}
    end
    -- Of one that ended in its time nothing comes late.
    if was or state ~= EXPIRED_STATE then self:remember(charge, ended, at, most) end
    self:record({RESOLVE, charge, at, {}, {}, state, kept, memo, '', ''})
    return {DONE, {}, {}, self:describe(hold, state, kept)}
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
    if self:is_closed(account) and not was then return {CLOSED} end
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
    self:record({ADJUST, '', at, openings, account[A_KEY], delta, memo})
    local view = {}
    put_view(view, 0, self:balance(account))
    return {DONE, {}, view}
end

function Batch:read(op)
    local view = {}
    for index, account in ipairs(op[2]) do put_view(view, index - 1, self:balance(account)) end
    return {DONE, {}, view}
end

-- Forgets what is forgotten in its time, and was there before an instant.
function Batch:sweep()
    for _, field in ipairs(self.swept) do
        if #field == CHARGE_BYTES then
            self:forget(field)
        elseif self.once[field] and self.once[field][3] then
            self:key_ends(field)
        end
    end
    return {DONE, {}, {}}
end

local STEPS = {
    [HOLD] = Batch.hold, [RESOLVE] = Batch.resolve, [AMEND] = Batch.amend, [END] = Batch.finish,
    [ADJUST] = Batch.adjust, [READ] = Batch.read, [SWEEP] = Batch.sweep, [LOOK] = Batch.look,
    [FIND] = Batch.find,
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
        elseif kind == SWEEP then
            local before = string.format('(%.0f', op[2])
            self.swept = redis.call('ZRANGEBYSCORE', keys[KEPT], '-inf', before, 'LIMIT', 0, op[3])
            for _, field in ipairs(self.swept) do
                if #field == CHARGE_BYTES then ended[field] = true else key(field) end
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
    end
    call_many('HSET', keys[ACCOUNTS], put)
    call_many('HSET', keys[NAMES], self.new_names)
    counts.accounts = counts.accounts + #self.new_names / 2
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
end

-- What is counted of a shard, of the values of `meta` as they are read.
local function counted(meta)
    local counts = {}
    for index, name in ipairs(COUNTS) do counts[name] = tonumber(meta[index + 2]) end
    return counts
end

-- A key that was deleted, or comes from another time than the others, is told by how much it has.
-- One of another type raises an error here, before anything is written.
local function is_whole(keys, counts)
    return redis.call('HLEN', keys[ACCOUNTS]) == counts.accounts
        and redis.call('HLEN', keys[NAMES]) == counts.accounts
        and redis.call('HLEN', keys[HOLDS]) == counts.holds
        and redis.call('ZCARD', keys[ENDING]) == counts.ending
        and redis.call('HLEN', keys[ONCE]) == counts.keys + counts.scopes
        and redis.call('ZCARD', keys[KEPT]) == counts.kept
        and redis.call('HLEN', keys[ENDED]) == counts.ended
        and redis.call('HLEN', keys[SESSIONS]) == 2 * counts.sessions
        and (counts.seq == 0 or redis.call('EXISTS', keys[LEDGER]) == 1)
end

-- The reply to a call that did nothing: why.
local function refused(...)
    return cmsgpack.pack({...})
end

-- What a shard says of itself.
local function about(keys)
    local meta = redis.call('HMGET', keys[META], 'epoch', 'closed', unpack(COUNTS))
    local more = redis.call('HMGET', keys[META], 'run', 'opening', 'since', 'lost', 'terms')
    return {
        epoch = meta[1], closed = tonumber(meta[2]), counts = counted(meta), run = more[1],
        opening = more[2], since = tonumber(more[3]), lost = more[4],
        terms = more[5] and cmsgpack.unpack(more[5]) or {},
    }
end

-- A session's last number, with the reply to it; `run` is empty of one that has not entered yet.
local function put_mark(keys, session, number, run, reply)
    local mark = cmsgpack.pack(number, now(), run)
    if reply then
        redis.call('HSET', keys[SESSIONS], session, mark, session .. ':r', reply)
    else
        redis.call('HSET', keys[SESSIONS], session, mark)
    end
end

-- Applies a batch: {epoch, session, number, tag}, {operation, ...}. A session numbers its batches;
-- the same number again returns the same reply, and any other than the next is refused. The tag is
-- in the reply, so that nobody takes the reply to another call for his own; behind the replies the
-- ledger's entry, zero where there is none, and its term.
--
-- With {term, seq} and the reply that it had, a batch that was done before and is not known any more is
-- done again as it was then.
local function apply(keys, args)
    local epoch, session, number, tag = cmsgpack.unpack(args[1])
    local before = args[3] and cmsgpack.unpack(args[3])
    local was = before and cmsgpack.unpack(args[4])[3]
    local shard = about(keys)
    if shard.epoch ~= epoch then return refused('epoch', shard.epoch or '') end
    local is_open = shard.run == this_run()
    if not (is_open or (before and shard.opening == this_run())) then return refused('closed') end
    local known, last = redis.call('HGET', keys[SESSIONS], session), nil
    if known then last = cmsgpack.unpack(known) end
    if number == last then return redis.call('HGET', keys[SESSIONS], session .. ':r') end
    local counts = shard.counts
    if not is_whole(keys, counts) then return refused('damaged') end
    if not known then return refused('session') end
    if number ~= last + 1 and not (before and number > last) then return refused('number', last) end
    local batch = setmetatable({
        keys = keys, session = session, number = number, closed = shard.closed, counts = counts,
        entries = {}, changed = {}, names = {}, new_names = {}, holds_changed = {}, once_changed = {},
        ended_changed = {}, kept = {}, unkept = {}, swept = {}, before = before,
    }, Batch)
    local ops, replies = cmsgpack.unpack(args[2]), {}
    batch:load(ops, was)
    for index, op in ipairs(ops) do
        -- What changed nothing then changes nothing now.
        if was and (was[index][1] ~= DONE or op[1] > ADJUST) then
            replies[index] = {DONE, {}, {}}
        else
            replies[index] = STEPS[op[1]](batch, op, was and was[index])
        end
    end
    local seq, forgets = 0, next(batch.once_changed) or next(batch.ended_changed)
    if forgets or #batch.entries > 0 then
        batch:write()
        seq = counts.seq
    end
    local term, in_the_red = shard.terms[#shard.terms], nil
    if before then
        in_the_red = 0
        for key in pairs(batch.changed) do
            if remaining(batch.accounts[key]) < 0 then in_the_red = in_the_red + 1 end
        end
    end
    local reply = cmsgpack.pack({'done', tag, replies, seq, term and term[1] or '', in_the_red})
    if before then redis.call('HSET', keys[META], 'lost', 1) end
    put_mark(keys, session, number, before and '' or this_run(), reply)
    return reply
end

-- Begins a term of which nobody has entered yet. So many are known at most.
local MAX_TERMS = 1000
local function begin_term(keys, shard)
    local run, at = this_run(), now()
    local terms = shard.terms
    terms[#terms + 1] = {string.format('%s-%.0f', string.sub(run, 1, 8), at), shard.counts.seq or 0}
    if #terms > MAX_TERMS then table.remove(terms, 1) end
    redis.call('HSET', keys[META], 'opening', run, 'since', string.format('%.0f', at), 'lost', 0,
        'terms', cmsgpack.pack(terms))
    shard.opening = run
end

-- Makes empty books, unless there are some: {epoch}.
local function create(keys, args)
    local epoch = redis.call('HGET', keys[META], 'epoch')
    if epoch then return epoch end
    redis.call('HSET', keys[META], 'epoch', args[1], 'closed', 0)
    for _, name in ipairs(COUNTS) do redis.call('HSET', keys[META], name, 0) end
    begin_term(keys, {terms = {}, counts = {}})
    redis.call('HSET', keys[META], 'run', this_run())
    return args[1]
end

-- Before anything else in a run of the server: {epoch}, {session}, {last number it has used}. Says the
-- last number that is known of the session, -1 where it is not registered, and the terms.
--
-- A session that has entered in this run and is behind its own number since tells that the server
-- went back without a new run (a master that was a replica in between): the shard closes for all.
local function enter(keys, args)
    local epoch, session, number = args[1], args[2], tonumber(args[3])
    local shard = about(keys)
    if shard.epoch ~= epoch then return refused('epoch', shard.epoch or '') end
    if not is_whole(keys, shard.counts) then return refused('damaged') end
    local known, last, run = redis.call('HGET', keys[SESSIONS], session), -1, nil
    if known then last, run = select(1, cmsgpack.unpack(known)), select(3, cmsgpack.unpack(known)) end
    local went_back = known and run == this_run() and last < number
    if shard.run == this_run() and went_back then
        redis.call('HSET', keys[META], 'run', '')
        begin_term(keys, shard)
    elseif shard.run ~= this_run() and shard.opening ~= this_run() then
        begin_term(keys, shard)
    end
    return refused('done', last, shard.terms)
end

-- Registers a session, unless it is: {epoch}, {session}, {the last number it has used}.
local function join(keys, args)
    local epoch, session, number = args[1], args[2], tonumber(args[3])
    local shard = about(keys)
    if shard.epoch ~= epoch then return refused('epoch', shard.epoch or '') end
    if not is_whole(keys, shard.counts) then return refused('damaged') end
    local known = redis.call('HGET', keys[SESSIONS], session)
    if known then return refused('done', (cmsgpack.unpack(known))) end
    redis.call('HINCRBY', keys[META], 'sessions', 1)
    put_mark(keys, session, number, '', '')
    return refused('done', number)
end

-- Which sessions have not entered in this run.
local function absent_of(keys)
    local names, absent = {}, {}
    for _, name in ipairs(redis.call('HKEYS', keys[SESSIONS])) do
        if string.sub(name, -2) ~= ':r' then names[name] = true end
    end
    for name, mark in pairs(fetch(keys[SESSIONS], names)) do
        if select(3, cmsgpack.unpack(mark)) ~= this_run() then absent[#absent + 1] = name end
    end
    return absent
end

-- A session has done again what was lost of its own, and goes on behind this number: {epoch},
-- {session}, {number}, {how long is waited for the others, in microseconds}. Says whether the shard is
-- open, and who was not waited for any longer.
local function ready(keys, args)
    local epoch, session, number, patience = args[1], args[2], tonumber(args[3]), tonumber(args[4])
    local shard = about(keys)
    if shard.epoch ~= epoch then return refused('epoch', shard.epoch or '') end
    if shard.run ~= this_run() and shard.opening ~= this_run() then return refused('closed') end
    local known = redis.call('HGET', keys[SESSIONS], session)
    if not known then return refused('session') end
    local last = cmsgpack.unpack(known)
    put_mark(keys, session, math.max(number, last), this_run(), number > last and '' or nil)
    if shard.run == this_run() then return refused('done', 1, {}) end
    local absent, waited = absent_of(keys), now() - shard.since
    if waited < patience and (#absent > 0 or shard.lost ~= '0') then return refused('done', 0, {}) end
    redis.call('HSET', keys[META], 'run', this_run())
    return refused('done', 1, absent)
end

-- A session that is over, and of which nothing is open, goes unless it has another mark by now:
-- {epoch}, {session}, {mark}.
local function leave(keys, args)
    local epoch, session, mark = args[1], args[2], args[3]
    local shard = about(keys)
    if shard.epoch ~= epoch then return refused('epoch', shard.epoch or '') end
    if shard.run ~= this_run() then return refused('closed') end
    if redis.call('HGET', keys[SESSIONS], session) ~= mark then return refused('done', 0) end
    redis.call('HINCRBY', keys[META], 'sessions', -1)
    redis.call('HDEL', keys[SESSIONS], session, session .. ':r')
    return refused('done', 1)
end

redis.register_function('tollgate_1_apply', apply)
redis.register_function('tollgate_1_create', create)
-- What gives back, what was taken already, and who comes back: not refused where memory is short (f28).
local function register(name, callback)
    redis.register_function{
        function_name = 'tollgate_1_' .. name, callback = callback, flags = {'allow-oom'},
    }
end
register('settle', apply)
register('enter', enter)
register('join', join)
register('ready', ready)
register('leave', leave)
