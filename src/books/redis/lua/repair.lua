-- Books that are built again, and books that are added up: what there is of a shard, all in one step.

local KINDS = {
    'hash', 'hash', 'hash', 'hash', 'zset', 'hash', 'zset', 'hash', 'stream', 'hash',
}
local SIZES = {hash = 'HLEN', zset = 'ZCARD', stream = 'XLEN'}

-- How many each key has: none where it is not there, -1 where it is of another type.
local function sizes(keys)
    local found = {}
    for index, key in ipairs(keys) do
        local kind = redis.call('TYPE', key).ok
        if kind == 'none' then
            found[index] = 0
        elseif kind ~= KINDS[index] then
            found[index] = -1
        else
            found[index] = redis.call(SIZES[kind], key)
        end
    end
    return found
end

-- What a shard says of itself, also one of which anything may be missing; and whether it is whole.
local function look_over(keys)
    local found = sizes(keys)
    local shard = {counts = {}, terms = {}}
    if found[META] >= 0 then
        local is_told
        is_told, shard = pcall(about, keys)
        -- Terms that cannot be read.
        if not is_told then shard = {counts = {}, terms = {}} end
    end
    local whole = true
    for index = 1, #KINDS do whole = whole and found[index] >= 0 end
    for _, name in ipairs(COUNTS) do whole = whole and shard.counts[name] ~= nil end
    return shard, found, whole and is_whole(keys, shard.counts)
end

-- What a shard is whose repair was begun.
local function unfinished(epoch)
    return epoch .. '/repair'
end

-- What there is of a shard: its epoch, whether it is whole, what `meta` counts (-1 for nothing), how
-- much its keys have, its terms, and which cycles are closed.
local function inspect(keys)
    local shard, found, whole = look_over(keys)
    local counts = {}
    for index, name in ipairs(COUNTS) do counts[index] = shard.counts[name] or -1 end
    return refused('done', shard.epoch or '', whole and 1 or 0, counts, found, shard.terms,
        shard.closed or 0)
end

-- Gives a shard up that is not whole: {epoch}, {token}. Nobody uses it until it is made again; only who
-- has the token fills it. The ledger stays, and what `meta` says of terms and closed cycles.
local function unmake(keys, args)
    local epoch, token = args[1], args[2]
    local shard, found, whole = look_over(keys)
    local there = shard.epoch or ''
    if there ~= '' and there ~= epoch and there ~= unfinished(epoch) then
        return refused('epoch', there)
    end
    if whole and there == epoch then return refused('whole') end
    for index, key in ipairs(keys) do
        if index ~= LEDGER or found[index] < 0 then redis.call('DEL', key) end
    end
    redis.call('HSET', keys[META], 'epoch', unfinished(epoch), 'token', token,
        'closed', shard.closed or 0, 'terms', cmsgpack.pack(shard.terms))
    return refused('done')
end

local function is_ours(keys, token)
    return redis.call('HGET', keys[META], 'token') == token
end

-- Fills a key: {token}, {its index}, then a field and a value each, or a score and a member.
local function refill(keys, args)
    if not is_ours(keys, args[1]) then return refused('token') end
    local index = tonumber(args[2])
    local values = {}
    for at = 3, #args do values[at - 2] = args[at] end
    call_many(KINDS[index] == 'zset' and 'ZADD' or 'HSET', keys[index], values)
    return refused('done')
end

-- Makes a shard of what it was filled with: {token}, {epoch}, {whether its ledger is kept}, {terms},
-- {closed}, {the counts}, then what else `meta` has: a field and a value each. It is closed until
-- gateways enter it, as in any new run of the server.
local function remake(keys, args)
    local token, epoch, keeps, terms, closed = unpack(args, 1, 5)
    if not is_ours(keys, token) then return refused('token') end
    local counts, put = {}, {}
    for index, name in ipairs(COUNTS) do
        counts[name] = tonumber(args[index + 5])
        put[2 * index - 1], put[2 * index] = name, args[index + 5]
    end
    if keeps ~= '1' then
        redis.call('DEL', keys[LEDGER])
        if counts.seq > 0 then
            redis.call('XADD', keys[LEDGER], string.format('%.0f-0', counts.seq), 'b', '')
            redis.call('XTRIM', keys[LEDGER], 'MAXLEN', 0)
        end
    end
    if not is_whole(keys, counts) then return refused('damaged') end
    redis.call('HSET', keys[META], unpack(put))
    redis.call('HSET', keys[META], 'closed', closed, 'terms', terms, 'run', '', 'opening', '',
        'since', 0, 'lost', 0)
    local more = {}
    for at = #COUNTS + 6, #args do more[#more + 1] = args[at] end
    call_many('HSET', keys[META], more)
    redis.call('HDEL', keys[META], 'token')
    redis.call('HSET', keys[META], 'epoch', epoch)
    return refused('done')
end

-- All that a shard has, for whoever adds it up: its epoch, where its ledger ends, which cycles are
-- closed, its accounts, their names, and which charges are open.
local function sums(keys)
    local shard = about(keys)
    return refused('done', shard.epoch or '', shard.counts.seq or 0, shard.closed or 0,
        redis.call('HGETALL', keys[ACCOUNTS]), redis.call('HGETALL', keys[NAMES]),
        redis.call('HKEYS', keys[HOLDS]))
end

register('inspect', inspect)
register('unmake', unmake)
register('refill', refill)
register('remake', remake)
register('sums', sums)
