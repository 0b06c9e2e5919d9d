-- Sessions and terms: what a shard asks before it is open.

-- Begins a term of which nobody has entered yet. So many are known at most. From here on the shard is open
-- in no run: a replica that has heard of this, and not of what follows, must not take itself for the master
-- that it was before.
local MAX_TERMS = 1000
local function begin_term(keys, shard)
    local run, at = this_run(), now()
    local terms = shard.terms
    terms[#terms + 1] = {string.format('%s-%.0f', string.sub(run, 1, 8), at), shard.counts.seq or 0}
    if #terms > MAX_TERMS then table.remove(terms, 1) end
    redis.call('HSET', keys[META], 'run', '', 'opening', run, 'since', string.format('%.0f', at), 'lost', 0,
        'terms', cmsgpack.pack(terms))
    shard.opening = run
end

-- Makes empty books, unless there are some: {epoch}.
local function create(keys, args)
    local epoch = redis.call('HGET', keys[META], 'epoch')
    -- A change all the same, behind which a replica can be waited for.
    redis.call('HSET', keys[META], 'epoch', epoch or args[1])
    if epoch then return epoch end
    redis.call('HSET', keys[META], 'closed', 0)
    for _, name in ipairs(COUNTS) do redis.call('HSET', keys[META], name, 0) end
    begin_term(keys, {terms = {}, counts = {}})
    redis.call('HSET', keys[META], 'run', this_run())
    return args[1]
end

-- Before anything else in a run of the server: {epoch}, {session}, {last number it has used}. Says the
-- last number that is known of the session, -1 where it is not registered, and the terms.
--
-- A session that has entered in this term and is behind its own number since tells that the server
-- went back without a new run (it was master, and others had another one): the shard closes for all.
local function enter(keys, args)
    local epoch, session, number = args[1], args[2], tonumber(args[3])
    local shard = about(keys)
    if shard.epoch ~= epoch then return refused('epoch', shard.epoch or '') end
    if not is_whole(keys, shard.counts) then return refused('damaged') end
    local last, term = read_mark(redis.call('HGET', keys[SESSIONS], session))
    local went_back = last and term == term_of(shard) and last < number
    if shard.run == this_run() and went_back then
        begin_term(keys, shard)
    elseif shard.run ~= this_run() and shard.opening ~= this_run() then
        begin_term(keys, shard)
    end
    return refused('done', last or -1, shard.terms)
end

-- Registers a session, unless it is: {epoch}, {session}, {the last number it has used}, {1 for a new one,
-- which has nothing to do again}.
local function join(keys, args)
    local epoch, session, number = args[1], args[2], tonumber(args[3])
    local shard = about(keys)
    if shard.epoch ~= epoch then return refused('epoch', shard.epoch or '') end
    if not is_whole(keys, shard.counts) then return refused('damaged') end
    local known = redis.call('HGET', keys[SESSIONS], session)
    if known then return refused('done', (cmsgpack.unpack(known))) end
    redis.call('HINCRBY', keys[META], 'sessions', 1)
    put_mark(keys, session, number, args[4] == '1' and term_of(shard) or '', '')
    return refused('done', number)
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
    put_mark(keys, session, math.max(number, last), term_of(shard), number > last and '' or nil)
    if shard.run == this_run() then return refused('done', 1, {}) end
    local absent, waited = absent_of(keys, shard), now() - shard.since
    if waited < patience and (#absent > 0 or shard.lost ~= '0') then return refused('done', 0, {}) end
    redis.call('HSET', keys[META], 'run', this_run())
    return refused('done', 1, absent)
end

-- Keeps the last reply of a session that goes, where it tells of a change.
local function keep_last_reply(keys, session, at)
    local reply = redis.call('HGET', keys[SESSIONS], session .. ':r')
    local told = reply and reply ~= '' and cmsgpack.unpack(reply) or {}
    local changed = told[1] == 'done' and told[4] > 0 or told[1] == 'again' and #told[3] > 0
    local left = tonumber(redis.call('HGET', keys[META], 'left') or 0)
    if not changed or left >= MOST_LEFT then return end
    if redis.call('HSET', keys[META], LEFT .. session, reply) == 1 then
        redis.call('HINCRBY', keys[META], 'left', 1)
        redis.call('HINCRBY', keys[META], 'kept', 1)
    end
    redis.call('ZADD', keys[KEPT], at, LEFT .. session)
end

-- A session that is over, and of which nothing is open, goes unless it has another mark by now:
-- {epoch}, {session}, {mark}, {when its last reply is kept from; empty where its gateway has read it}.
local function leave(keys, args)
    local epoch, session, mark, at = args[1], args[2], args[3], args[4]
    local shard = about(keys)
    if shard.epoch ~= epoch then return refused('epoch', shard.epoch or '') end
    if shard.run ~= this_run() then return refused('closed') end
    if redis.call('HGET', keys[SESSIONS], session) ~= mark then return refused('done', 0) end
    if at ~= '' then keep_last_reply(keys, session, at) end
    redis.call('HINCRBY', keys[META], 'sessions', -1)
    redis.call('HDEL', keys[SESSIONS], session, session .. ':r')
    return refused('done', 1)
end

-- Does batches of a session again that are not known any more, in order and as they were: {epoch,
-- session, tag}, and of each {number, operations, {term, seq}, reply}. Says of each that is done {number,
-- seq, term}, how many accounts are in the red with one of them at most, and why it went no further.
-- The reply is kept like any: where it is lost, the session's gateway finds there which entries have what
-- was done.
local function again(keys, args)
    local epoch, session, tag = cmsgpack.unpack(args[1])
    local shard, done, most_in_the_red, why = about(keys), {}, 0, false
    local last = read_mark(redis.call('HGET', keys[SESSIONS], session))
    if shard.epoch ~= epoch then
        why = 'epoch'
    elseif shard.run ~= this_run() and shard.opening ~= this_run() then
        why = 'closed'
    elseif not last then
        why = 'session'
    elseif not is_whole(keys, shard.counts) then
        why = 'damaged'
    end
    for at = 2, why and 1 or #args do
        local number, ops, before, was = cmsgpack.unpack(args[at])
        if number <= last then
            why = 'number'
            break
        end
        local worked, told, _, in_the_red = pcall(work, keys, shard, session, number,
            cmsgpack.unpack(ops), before, cmsgpack.unpack(was)[3])
        if not worked then
            why = type(told) == 'table' and told.err or tostring(told)
            break
        end
        -- One that changes nothing, because all of it is there, is there with what was before it.
        done[#done + 1], last = {number, shard.counts.seq, term_of(shard)}, number
        most_in_the_red = math.max(most_in_the_red, in_the_red)
    end
    local reply = refused('again', tag, done, most_in_the_red, why)
    if #done > 0 then
        redis.call('HSET', keys[META], 'lost', 1)
        put_mark(keys, session, last, '', reply)
    end
    return reply
end

redis.register_function('tollgate_1_apply', apply)
redis.register_function('tollgate_1_apply_together', together)
redis.register_function('tollgate_1_create', create)
-- What gives back, what was taken already, and who comes back: not refused where memory is short (f28).
local function register(name, callback)
    redis.register_function{
        function_name = 'tollgate_1_' .. name, callback = callback, flags = {'allow-oom'},
    }
end
register('settle', apply)
register('settle_together', together)
register('again', again)
register('enter', enter)
register('join', join)
register('ready', ready)
register('leave', leave)
