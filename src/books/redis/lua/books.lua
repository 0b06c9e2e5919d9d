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
--   meta      hash: epoch, seq (of the ledger), closed (cycles before it are) and forgotten (accounts
--             of cycles before it are gone), the last day on which something was recorded and the
--             last DAYS of them, owed:<cycle>:<org> (what its users owe in it), and how much there is
--             of accounts, holds, ending, keys, scopes, kept, ended, sessions; run, opening, since,
--             lost and terms (see "A server that comes back"). From outside of this library: in shard 0
--             timeouts:<gateway> (what it waits for others), and while books move, moving (where from).
--             While a shard is built again, token (who may fill it). The last replies of sessions that
--             were taken away (see LEFT), and left (how many)
--   accounts  hash: key of an account -> base, adjusted, held, captured, epoch, number
--   names     hash: key of an account -> its name
--   holds     hash: charge -> hold (see the H_ constants)
--   ending    sorted set: charges that end by themselves, by when
--   once      hash: scope and key -> charge, request, captured, at, and of what was done again which
--             entry of the ledger it had first; scope and name -> charges that are open under it;
--             scope -> how many keys and names
--   kept      sorted set, what is forgotten in its time: keys of captured charges and of adjustments
--             (24 bytes), by when they were held or made; charges that ended without their owner (16
--             bytes), by when they did; last replies in `meta` (longer), by when their sessions went
--   sessions  hash: session -> its mark (last number, when it was seen, in which term it has entered);
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
-- back himself; a hold that comes behind that is not put back again. Where the hold is there, and is not
-- what it was when it was ended, what was kept of it is captured as the reply says.

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
-- That another session than its owner's has changed it.
local H_CHANGED = 14
-- A charge that ended without its owner: how; of one that can still be captured what it took, which
-- accounts it named, and the key it was made under, with its request and when it was held.
local E_STATE, E_LEGS, E_NAMED, E_ONCE = 1, 2, 3, 4

-- Kinds of operations, and of entries of the ledger. 10 is an entry that books begin with which were
-- moved here; no operation makes one.
local HOLD, RESOLVE, AMEND, END, ADJUST, READ, SWEEP, LOOK, FIND = 1, 2, 3, 4, 5, 6, 7, 8, 9
local CLOSE, FORGET = 11, 12
-- What became of an operation.
local DONE, SHORT, KNOWN, UNKNOWN, CLOSED, RANGE, TOO_MANY_KEYS, ALREADY = 0, 1, 2, 3, 4, 5, 6, 7
local FOUND, AGAIN, REUSED, UNSURE = 8, 9, 10, 11
-- What becomes of a hold without its owner.
local VOID, WHOLE, USED = 0, 1, 2
-- How a charge ends.
local CAPTURED_STATE, VOIDED_STATE, EXPIRED_STATE = 1, 2, 3
-- What else is said of the end of a charge: that it is remembered because another session than its owner's
-- has ended it; that its key is another one's; that it was captured late and has its key.
local REMEMBERED, KEY_LOST, HAS_KEY = 1, 2, 4
-- The kind of an account that tells what a user owes: the last byte of its key.
local OVERDRAFT = 1
-- The kind of a leg that counts against the cap of the one before it.
local CAP = 5

-- What is counted of a shard, in `meta`.
local COUNTS =
    {'seq', 'accounts', 'holds', 'ending', 'keys', 'scopes', 'kept', 'ended', 'sessions'}
-- How many days on which something was recorded are known: so many lie behind a cycle that is closed.
local DAYS, DAY = 100, 86400000000
-- How many open holds are looked at in one call.
local MOST_LOOKED_AT = 10000
-- How long the id of a charge is, and how long a key with its scope; whatever else is forgotten in its
-- time has longer names.
local CHARGE_BYTES, KEY_BYTES = 16, 24
-- In front of the name of a session that was taken away, its last reply stands, if that changed anything:
-- its gateway may be standing still, or dead, and not have been told. So many are kept.
local LEFT, MOST_LEFT = 'the last reply of session ', 1000

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

-- This run of this server process, as long as it lasts: a library is read anew by each. A master that
-- was a replica in between reads it anew too where it took over another one's data, and has another
-- replication id since it is master again: that is another run, because what it had may be lost.
local process
local function this_run()
    if not process then
        process = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
        local id = string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)')
        process = process .. '-' .. string.sub(id or '', 1, 8)
    end
    return process
end
