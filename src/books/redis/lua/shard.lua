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
    local known, last, run = redis.call('HGET', keys[SESSIONS], session), nil, nil
    if known then
        last, run = select(1, cmsgpack.unpack(known)), select(3, cmsgpack.unpack(known))
    end
    if number == last then
        -- It is a sign of life like any other, and a change behind which a replica is waited for.
        put_mark(keys, session, number, run)
        return redis.call('HGET', keys[SESSIONS], session .. ':r')
    end
    local counts = shard.counts
    if not is_whole(keys, counts) then return refused('damaged') end
    if not known then return refused('session') end
    if number ~= last + 1 and not (before and number > last) then return refused('number', last) end
    local batch = setmetatable({
        keys = keys, session = session, number = number, closed = shard.closed, counts = counts,
        entries = {}, changed = {}, names = {}, new_names = {}, holds_changed = {}, once_changed = {},
        ended_changed = {}, kept = {}, unkept = {}, swept = {}, gone = {}, before = before,
        owed = {}, day = shard.day, new_days = {},
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
        or batch.forgotten or #batch.gone > 0
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
