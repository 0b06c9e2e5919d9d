-- A shard, and how a batch is applied to it.

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
    local more = redis.call('HMGET', keys[META], 'run', 'opening', 'since', 'lost', 'terms', 'day')
    return {
        epoch = meta[1], closed = tonumber(meta[2]), counts = counted(meta), run = more[1],
        opening = more[2], since = tonumber(more[3]), lost = more[4],
        terms = more[5] and cmsgpack.unpack(more[5]) or {}, day = tonumber(more[6]),
    }
end

-- The term that goes on.
local function term_of(shard)
    local term = shard.terms[#shard.terms]
    return term and term[1] or ''
end

-- A session's last number, with the reply to it, and the term in which it has entered: nothing of one
-- that has not yet.
local function put_mark(keys, session, number, term, reply)
    local mark = cmsgpack.pack(number, now(), term)
    if reply then
        redis.call('HSET', keys[SESSIONS], session, mark, session .. ':r', reply)
    else
        redis.call('HSET', keys[SESSIONS], session, mark)
    end
end

-- The last number and the term of a mark; nothing where there is none.
local function read_mark(mark)
    if not mark then return nil, nil end
    local last, _, term = cmsgpack.unpack(mark)
    return last, term
end

-- Which sessions have not entered in this term.
local function absent_of(keys, shard)
    local names, absent = {}, {}
    for _, name in ipairs(redis.call('HKEYS', keys[SESSIONS])) do
        if string.sub(name, -2) ~= ':r' then names[name] = true end
    end
    for name, mark in pairs(fetch(keys[SESSIONS], names)) do
        if select(2, read_mark(mark)) ~= term_of(shard) then absent[#absent + 1] = name end
    end
    return absent
end

-- Works on the operations of a batch, and writes what it came to. Returns the replies, and the ledger's
-- entry, zero where there is none; with what it was `before` ({term, seq}) and the replies that it had then
-- it is done again as it was, and the third value is how many accounts are in the red with it.
local function work(keys, shard, session, number, ops, before, was)
    local batch = setmetatable({
        keys = keys, session = session, number = number, closed = shard.closed, counts = shard.counts,
        entries = {}, changed = {}, names = {}, new_names = {}, holds_changed = {}, once_changed = {},
        ended_changed = {}, kept = {}, unkept = {}, swept = {}, gone = {}, before = before,
        replies_gone = {}, owed = {}, day = shard.day, new_days = {},
    }, Batch)
    local replies, seq, in_the_red = {}, 0, 0
    batch:load(ops, was)
    for index, op in ipairs(ops) do
        -- What changed nothing then changes nothing now.
        if was and (was[index][1] ~= DONE or op[1] > ADJUST) then
            replies[index] = {DONE, {}, {}}
        else
            replies[index] = STEPS[op[1]](batch, op, was and was[index])
        end
    end
    local forgets = next(batch.once_changed) or next(batch.ended_changed)
        or batch.forgotten or #batch.gone > 0 or #batch.replies_gone > 0
    if forgets or #batch.entries > 0 then
        batch:write()
        seq = shard.counts.seq
    end
    for key in pairs(before and batch.changed or {}) do
        if remaining(batch.accounts[key]) < 0 then in_the_red = in_the_red + 1 end
    end
    return replies, seq, in_the_red
end

-- As long as somebody has not entered, what is not known of a charge may be what he has to do again.
local function unless_sure(keys, shard, ops, replies)
    local is_sure = nil
    for index, op in ipairs(ops) do
        local asks = op[1] == RESOLVE or op[1] == AMEND or op[1] == LOOK
        if asks and replies[index][1] == UNKNOWN then
            if is_sure == nil then is_sure = #absent_of(keys, shard) == 0 end
            if not is_sure then replies[index] = {UNSURE} end
        end
    end
end

-- Applies a batch: {epoch, session, number, tag}, {operation, ...}. A session numbers its batches;
-- the same number again returns the same reply, and any other than the next is refused. The tag is
-- in the reply, so that nobody takes the reply to another call for his own; behind the replies the
-- ledger's entry, zero where there is none, and its term.
local function apply(keys, args)
    local epoch, session, number, tag = cmsgpack.unpack(args[1])
    local shard = about(keys)
    if shard.epoch ~= epoch then return refused('epoch', shard.epoch or '') end
    if shard.run ~= this_run() then return refused('closed') end
    local known = redis.call('HGET', keys[SESSIONS], session)
    local last, entered = read_mark(known)
    if number == last then
        -- It is a sign of life like any other, and a change behind which a replica is waited for.
        put_mark(keys, session, number, entered)
        return redis.call('HGET', keys[SESSIONS], session .. ':r')
    end
    if not is_whole(keys, shard.counts) then return refused('damaged') end
    if not known then return refused('session') end
    -- What its gateway knows of may have to be done again first.
    if entered ~= term_of(shard) then return refused('closed') end
    if number ~= last + 1 then return refused('number', last) end
    local ops = cmsgpack.unpack(args[2])
    local replies, seq = work(keys, shard, session, number, ops)
    unless_sure(keys, shard, ops, replies)
    local reply = cmsgpack.pack({'done', tag, replies, seq, term_of(shard)})
    put_mark(keys, session, number, term_of(shard), reply)
    return reply
end

-- Applies batches of several shards, each as `apply` does it alone: of each its keys, and its two
-- arguments. A reply each, behind a sign: what fails keeps no other from being done.
local function together(keys, args)
    local replies, calls = {}, #args / 2
    local width = #keys / calls
    for at = 1, calls do
        local own = {}
        for index = 1, width do own[index] = keys[(at - 1) * width + index] end
        local worked, told = pcall(apply, own, {args[2 * at - 1], args[2 * at]})
        if worked then
            replies[at] = '+' .. (told or '')
        else
            replies[at] = '-' .. (type(told) == 'table' and told.err or tostring(told))
        end
    end
    return replies
end
