"""The ledger's Lua scripts. Each is atomic: Redis runs nothing else meanwhile.

Addresses travel as lower-case hexadecimal, eight digits for IPv4 and 32 for IPv6. The addresses in use are bits: one
string of 65,536 bits per 16-bit block, so that the lowest free address of a range is one BITPOS, whatever its length.

A Redis that comes back from its disk may have lost its last second, in which others have seen more than it knows. So
the index, the table and each report belong to the run of the server (`run_id`, new at each start) that they were made
in; those of an earlier run count as absent, and are made anew from the objects and the nodes.

Keys: `hawse:index` (the run in which the index was built from the cluster's objects), `hawse:index-new` (while that was
within a minute: an API server ends a request by then, so what was given before a flush is not asked about later),
`hawse:addresses` (hash: address -> `state|holder|time`), `hawse:holders` (hash: holder -> addresses, comma-separated),
`hawse:used:BLOCK` (bits), `hawse:reserved` (sorted set: address by the time of its reservation), `hawse:epoch` and
`hawse:run` (which table it is, and the run in which it began), `hawse:change`, `hawse:table`, `hawse:changes`,
`hawse:node:NAME` (reports), `hawse:waiting` (sorted set: namespace by when its task is due), `hawse:list:NAME` (sorted
set: an address list's contents by when each was first seen).
"""

_RUN = """
local function run() return string.match(redis.call('INFO', 'server'), 'run_id:(%x+)') end
local function is_ready() return redis.call('GET', 'hawse:index') == run() end
local function has_table()
  return redis.call('EXISTS', 'hawse:epoch') == 1 and redis.call('GET', 'hawse:run') == run()
end
"""

_STAMP = """
-- Which pools are on offer, as they say themselves; '' without any. Those that do not say it are told by their digest.
local function stamp()
  local said = string.match(redis.call('GETRANGE', 'hawse:offer', 0, 50), '^{"stamp":"(%x+)"$')
  if said then return said end
  local text = redis.call('GET', 'hawse:offer')
  return text and redis.sha1hex(text) or ''
end
"""

_LIBRARY = (
    _RUN
    + """
local clock = nil
local function now() -- stands still while a script runs
  if not clock then
    local t = redis.call('TIME')
    clock = tonumber(t[1]) + tonumber(t[2]) / 1000000
  end
  return clock
end
local function block(hex) return 'hawse:used:' .. string.sub(hex, 1, -5) end
local function offset(hex) return tonumber(string.sub(hex, -4), 16) end
local function entry(hex)
  local text = redis.call('HGET', 'hawse:addresses', hex)
  if not text then return nil end
  local state, holder, at = string.match(text, '^(%a+)|(.*)|([%d.]+)$')
  return {state = state, holder = holder, at = tonumber(at)}
end
local function split(text)
  local parts = {}
  for part in string.gmatch(text or '', '[^,]+') do parts[#parts + 1] = part end
  return parts
end
local function holder_drop(holder, hex)
  local kept = {}
  for _, other in ipairs(split(redis.call('HGET', 'hawse:holders', holder))) do
    if other ~= hex then kept[#kept + 1] = other end
  end
  if #kept == 0 then redis.call('HDEL', 'hawse:holders', holder)
  else redis.call('HSET', 'hawse:holders', holder, table.concat(kept, ',')) end
end
local function holder_add(holder, hex)
  local list = split(redis.call('HGET', 'hawse:holders', holder))
  for _, other in ipairs(list) do if other == hex then return end end
  list[#list + 1] = hex
  redis.call('HSET', 'hawse:holders', holder, table.concat(list, ','))
end
-- `old` is entry(hex), which every caller has looked at.
local function put(hex, state, holder, at, old)
  if old and old.holder ~= holder then holder_drop(old.holder, hex) end
  redis.call('HSET', 'hawse:addresses', hex, state .. '|' .. holder .. '|' .. string.format('%.6f', at))
  redis.call('SETBIT', block(hex), offset(hex), 1)
  holder_add(holder, hex)
  if state == 'reserved' then redis.call('ZADD', 'hawse:reserved', at, hex)
  else redis.call('ZREM', 'hawse:reserved', hex) end
end
local function free(hex)
  local old = entry(hex)
  if not old then return end
  holder_drop(old.holder, hex)
  redis.call('HDEL', 'hawse:addresses', hex)
  redis.call('ZREM', 'hawse:reserved', hex)
  redis.call('SETBIT', block(hex), offset(hex), 0)
end
local function successor(prefix)
  local digits, carry = {}, true
  for i = #prefix, 1, -1 do
    local digit = tonumber(string.sub(prefix, i, i), 16)
    if carry then digit = digit + 1; carry = digit == 16; if carry then digit = 0 end end
    digits[i] = string.format('%x', digit)
  end
  return table.concat(digits)
end
-- Calls visit(block prefix, first bit, last bit) for each block that the range touches, until it returns true.
local function walk(first, last, visit)
  local prefix, final = string.sub(first, 1, -5), string.sub(last, 1, -5)
  local from = offset(first)
  while true do
    local to = 65535
    if prefix == final then to = offset(last) end
    if visit(prefix, from, to) or prefix == final then return end
    prefix, from = successor(prefix), 0
  end
end
local function in_ranges(hex, ranges)
  for i = 1, #ranges, 2 do
    if #hex == #ranges[i] and hex >= ranges[i] and hex <= ranges[i + 1] then return true end
  end
  return false
end
"""
)

_RESERVE = (
    _LIBRARY
    + """
-- Reserves `requested`, else the lowest free `count` addresses of `ranges` (first, last, ...), for `holder`; where
-- `paired` is '1', half of them of IPv4 and half of IPv6, and what is full is the family that lacks some.
-- Gives {'held', address}, {'full', used, total} or {'ok', address, ...}; only 'ok' changes anything.
local function reserve(holder, count, requested, ranges, paired)
  local chosen = {}
  for _, hex in ipairs(requested) do
    local old = entry(hex)
    if old and old.holder ~= holder then return {'held', hex} end
    chosen[#chosen + 1] = hex
  end
  local had = nil
  local function is_of(hex, digits) return digits == 0 or #hex == digits end
  -- Appends addresses of one family (by the digits of its keys; 0: any) until there are `most`; whether there are.
  local function take(most, digits)
    had = had or split(redis.call('HGET', 'hawse:holders', holder))
    for _, hex in ipairs(had) do
      if #chosen < most and is_of(hex, digits) and in_ranges(hex, ranges) then chosen[#chosen + 1] = hex end
    end
    for i = 1, #ranges, 2 do
      if #chosen >= most then break end
      if is_of(ranges[i], digits) then
        walk(ranges[i], ranges[i + 1], function(prefix, from, to)
          local key = 'hawse:used:' .. prefix
          while #chosen < most and from <= to do
            local bit = redis.call('BITPOS', key, 0, from, to, 'BIT')
            -- BITPOS sees no bit after the string's end, and the first one where there is no string.
            if bit < from and redis.call('STRLEN', key) < 8192 then
              redis.call('SETBIT', key, 65535, 0)
              bit = redis.call('BITPOS', key, 0, from, to, 'BIT')
            end
            if bit < 0 then break end
            chosen[#chosen + 1] = prefix .. string.format('%04x', bit)
            from = bit + 1
          end
          return #chosen >= most
        end)
      end
    end
    return #chosen >= most
  end
  local lacking = nil
  if #requested == 0 and paired == '1' then
    if not take(count / 2, 8) then lacking = 8 elseif not take(count, 32) then lacking = 32 end
  elseif #requested == 0 and not take(count, 0) then
    lacking = 0
  end
  if lacking then
    local used, total = 0, 0
    for i = 1, #ranges, 2 do
      if is_of(ranges[i], lacking) then
        walk(ranges[i], ranges[i + 1], function(prefix, from, to)
          used = used + redis.call('BITCOUNT', 'hawse:used:' .. prefix, from, to, 'BIT')
          total = total + to - from + 1
        end)
      end
    end
    return {'full', used, total}
  end
  local at = now()
  for _, hex in ipairs(chosen) do
    local old = entry(hex)
    if #chosen == 1 and had and #had == 0 and not old then -- as nearly all are: nothing else is to be read
      local text = string.format('%.6f', at) -- of a number Redis would write more digits, and read them again
      redis.call('HSET', 'hawse:addresses', hex, 'reserved|' .. holder .. '|' .. text)
      redis.call('SETBIT', block(hex), offset(hex), 1)
      redis.call('HSET', 'hawse:holders', holder, hex)
      redis.call('ZADD', 'hawse:reserved', text, hex)
    elseif not (old and old.holder == holder and old.state == 'claimed') then
      put(hex, 'reserved', holder, at, old)
    end
  end
  table.insert(chosen, 1, 'ok')
  return chosen
end
"""
)

RESERVE = (
    _RESERVE
    + """
-- ARGV: holder, count, requested (comma-separated), ranges (comma-separated: first, last, ...), paired: see reserve(),
-- but {'unready'} while the index is not complete.
if not is_ready() then return {'unready'} end
return reserve(ARGV[1], tonumber(ARGV[2]), split(ARGV[3]), split(ARGV[4]), ARGV[5])
"""
)

ADMIT = (
    _RESERVE
    + _STAMP
    + """
-- ARGV: the run of the server at the other end of the connection (is_ready() costs a fifth of all this), stamp of the
-- pools that were chosen from, holder, count, requested, ranges, paired as for RESERVE; then, where the workers are to
-- be told: the namespace, in how many seconds it is their turn, a key, for how many milliseconds it keeps others from
-- sending the message, a queue, and the message.
-- Gives a list in one text, which a client reads faster: 'stale' (other pools by now, nothing was done), 'unready',
-- 'held address', 'full used total', or 'ok address,...' and, if they could not be told, why not.
if redis.call('GET', 'hawse:index') ~= ARGV[1] then return 'unready' end
if stamp() ~= ARGV[2] then return 'stale' end
local reply = reserve(ARGV[3], tonumber(ARGV[4]), split(ARGV[5]), split(ARGV[6]), ARGV[7])
if reply[1] == 'full' then return string.format('full %.0f %.0f', reply[2], reply[3]) end
if reply[1] ~= 'ok' then return table.concat(reply, ' ') end
local text = 'ok ' .. table.concat(reply, ',', 2)
if ARGV[8] then
  local due = string.format('%.6f', now() + tonumber(ARGV[9]))
  local failed = redis.pcall('ZADD', 'hawse:waiting', 'LT', due, ARGV[8])
  if type(failed) == 'number' then failed = redis.pcall('SET', ARGV[10], '1', 'NX', 'PX', ARGV[11]) end
  if failed and not failed.err then failed = redis.pcall('LPUSH', ARGV[12], ARGV[13]) end
  if type(failed) == 'table' and failed.err then text = text .. ' ' .. failed.err end
end
return text
"""
)

WAIT = (
    _LIBRARY
    + """
-- ARGV: in how many seconds it is their turn, namespace, ... One that waits keeps its place, unless this is sooner.
local due = now() + tonumber(ARGV[1])
for i = 2, #ARGV do redis.call('ZADD', 'hawse:waiting', 'LT', due, ARGV[i]) end
"""
)

NEXT = (
    _LIBRARY
    + """
-- ARGV: a number: takes up to so many of the namespaces whose turn it is.
local names = redis.call('ZRANGE', 'hawse:waiting', '-inf', now(), 'BYSCORE', 'LIMIT', 0, ARGV[1])
if #names > 0 then redis.call('ZREM', 'hawse:waiting', unpack(names)) end
return names
"""
)

TURN = (
    _LIBRARY
    + """
-- In how many seconds it is the turn of the next namespace that waits; '' if none does.
local first = redis.call('ZRANGE', 'hawse:waiting', 0, 0, 'WITHSCORES')
return first[1] and string.format('%.3f', math.max(0, first[2] - now())) or ''
"""
)

GIVEN = """
-- ARGV: the run of the server at the other end of the connection, holder, ...: gives 'ok ' and the addresses that they
-- have, comma-separated; 'unready' while the index is not complete, or there are no pools.
if redis.call('GET', 'hawse:index') ~= ARGV[1] or redis.call('EXISTS', 'hawse:offer') == 0 then return 'unready' end
local given = {}
for i = 2, #ARGV do given[#given + 1] = redis.call('HGET', 'hawse:holders', ARGV[i]) or nil end
return 'ok ' .. table.concat(given, ',')
"""

SETTLE = (
    _LIBRARY
    + """
-- ARGV: state ('claimed', 'quarantined' or 'free'), holder, from (a state or ''), until (a time or ''), address, ...
-- 'claimed' and 'quarantined' follow an object that exists, so they hold whatever the index said before. 'free' gives
-- an address back only while `holder` has it, in state `from` if given, and since no later than `until` if given.
for i = 5, #ARGV do
  local hex = ARGV[i]
  local old = entry(hex)
  if ARGV[1] == 'free' then
    if old and old.holder == ARGV[2] and (ARGV[3] == '' or old.state == ARGV[3])
      and (ARGV[4] == '' or old.at <= tonumber(ARGV[4])) then free(hex) end
  elseif not (old and old.state == ARGV[1] and old.holder == ARGV[2]) then
    put(hex, ARGV[1], ARGV[2], now(), old)
  end
end
return redis.status_reply('OK')
"""
)

SYNC = (
    _LIBRARY
    + """
-- ARGV: listed_at, ready ('1' to declare the index complete; otherwise it is what it was), then address, state, holder,
-- ...: everything that the cluster's objects hold, as listed at `listed_at` (Redis's clock). What came later stays;
-- what is older and no object holds is freed, save for reservations, which end by being swept.
local listed_at, seen = tonumber(ARGV[1]), {}
for i = 3, #ARGV, 3 do
  local hex, state, holder = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  seen[hex] = true
  local old = entry(hex)
  local later = old and old.at > listed_at
  local reused = old and old.state == 'reserved' and state == 'quarantined' and old.holder == holder
  if not later and not reused and not (old and old.state == state and old.holder == holder) then
    put(hex, state, holder, listed_at, old)
  end
end
local all = redis.call('HGETALL', 'hawse:addresses')
for i = 1, #all, 2 do
  local hex = all[i]
  local old = entry(hex)
  if not seen[hex] and old.state ~= 'reserved' and old.at <= listed_at then free(hex) end
end
if ARGV[2] == '1' then
  if not is_ready() then redis.call('SET', 'hawse:index-new', '1', 'EX', 60) end
  redis.call('SET', 'hawse:index', run())
end
return redis.status_reply('OK')
"""
)

PUBLISH = (
    _RUN
    + """
-- ARGV: expected change number, epoch to set (or ''), then netid, row ('' for none), ...
-- Gives the new change number, or -1 if somebody published meanwhile, or there is no table to change.
local change = tonumber(redis.call('GET', 'hawse:change') or '0')
if change ~= tonumber(ARGV[1]) then return -1 end
if ARGV[2] ~= '' then redis.call('DEL', 'hawse:table', 'hawse:changes')
elseif not has_table() then return -1 end
for i = 3, #ARGV, 2 do
  change = change + 1
  if ARGV[i + 1] == '' then redis.call('HDEL', 'hawse:table', ARGV[i])
  else redis.call('HSET', 'hawse:table', ARGV[i], (string.gsub(ARGV[i + 1], '"since":0', '"since":' .. change))) end
  redis.call('ZADD', 'hawse:changes', change, ARGV[i])
end
redis.call('SET', 'hawse:change', string.format('%d', change))
if ARGV[2] ~= '' then
  redis.call('MSET', 'hawse:epoch', ARGV[2], 'hawse:run', run(), 'hawse:epoch-at', redis.call('TIME')[1])
end
return change
"""
)

CHANGES = (
    _RUN
    + """
-- ARGV: the reader's epoch, the change it has read up to.
-- Gives {epoch, change, 'some', netid, row ('' for none), ...}, or {epoch, change, 'all'} if the reader is to read the
-- whole table, in one transaction with this, or {''} while no table is published.
if not has_table() then return {''} end
local epoch = redis.call('GET', 'hawse:epoch')
local reply = {epoch, redis.call('GET', 'hawse:change') or '0', 'some'}
-- A reader that is ahead has seen what this table never had: it reads all.
if ARGV[1] ~= epoch or tonumber(ARGV[2]) > tonumber(reply[2]) then
  reply[3] = 'all'
  return reply
end
local netids = redis.call('ZRANGEBYSCORE', 'hawse:changes', '(' .. ARGV[2], '+inf')
for _, netid in ipairs(netids) do
  reply[#reply + 1] = netid
  reply[#reply + 1] = redis.call('HGET', 'hawse:table', netid) or ''
end
return reply
"""
)

_CHANGE = """
-- The epoch, '' while no table is published; and the change of it that wrote the row of a namespace's NetID, '' if
-- there is none, or it is another namespace's.
local function epoch() return has_table() and redis.call('GET', 'hawse:epoch') or '' end
local function change(epoch, namespace, netid)
  local row = epoch ~= '' and redis.call('HGET', 'hawse:table', netid)
  return row and cjson.decode(row).namespace == namespace and redis.call('ZSCORE', 'hawse:changes', netid) or ''
end
"""

LAST_CHANGES = (
    _RUN
    + _CHANGE
    + """
-- ARGV: namespace, netid, ...: gives the epoch ('' while no table is published) and when it began, then for each pair
-- the change that wrote the NetID's row, or ''.
local reply = {epoch(), redis.call('GET', 'hawse:epoch-at') or '0'}
for i = 1, #ARGV, 2 do reply[#reply + 1] = change(reply[1], ARGV[i], ARGV[i + 1]) end
return reply
"""
)

PROMISE = (
    _RUN
    + _CHANGE
    + """
-- ARGV: namespace: gives 1 if NetNamespaces' NetIDs are known, the NetID that was taken for the namespace, or '', 1 if
-- it is among those, which row of it is known to be applied by all nodes, or '', and the epoch and the change that
-- wrote the row there is, or ''.
local known = redis.call('EXISTS', 'hawse:netids-seen')
local netid = redis.call('HGET', 'hawse:netid-of', ARGV[1])
if not netid then return {known, '', 0, '', '', ''} end
local fenced = redis.call('HGET', 'hawse:fenced', ARGV[1]) or ''
local now = epoch()
return {known, netid, redis.call('SISMEMBER', 'hawse:netids-seen', netid), fenced, now, change(now, ARGV[1], netid)}
"""
)

SINCE = (
    _LIBRARY
    + """
-- KEYS: a text. ARGV: for how many seconds it is kept. Gives the seconds since this was first asked for.
redis.call('SET', KEYS[1], string.format('%.3f', now()), 'NX', 'EX', ARGV[1])
return string.format('%.3f', now() - redis.call('GET', KEYS[1]))
"""
)

READY = (
    _RUN
    + """
-- Gives 1 if the index is complete, so that reservations can be made.
if is_ready() then return 1 end
return 0
"""
)

OFFER = (
    _RUN
    + _STAMP
    + """
-- ARGV: a stamp: gives the stamp of the pools on offer, and the pools unless it is that one. Nothing while the index is
-- not complete, or there are none.
if not is_ready() then return false end
local now = stamp()
if now == '' then return false end
if now == ARGV[1] then return {now} end
return {now, redis.call('GET', 'hawse:offer')}
"""
)

STANDING = (
    _LIBRARY
    + _STAMP
    + """
-- ARGV: holder, ...: gives the version of the newest Namespace that was seen, the stamp of the pools on offer, or ''
-- while the index is incomplete or there are none, then address, `state|holder|time`, ... of all that the holders have.
local reply = {redis.call('HGET', 'hawse:versions', 'namespace') or '0', is_ready() and stamp() or ''}
for i = 1, #ARGV do
  for _, hex in ipairs(split(redis.call('HGET', 'hawse:holders', ARGV[i]))) do
    reply[#reply + 1] = hex
    reply[#reply + 1] = redis.call('HGET', 'hawse:addresses', hex) or ''
  end
end
return reply
"""
)

HOLDERS = (
    _RUN
    + """
-- ARGV: address, ...: gives for each `state|holder|time`, or ''; nothing at all while the index is not complete.
if not is_ready() then return false end
local reply = {}
for i = 1, #ARGV do reply[i] = redis.call('HGET', 'hawse:addresses', ARGV[i]) or '' end
return reply
"""
)

REPORT = (
    _RUN
    + """
-- ARGV: node, report (a JSON object): stores it with the run it was made in and the time, by the one clock of all.
local heard = ',"heard":' .. redis.call('TIME')[1] .. ','
redis.call('SET', 'hawse:node:' .. ARGV[1], '{"run":"' .. run() .. '"' .. heard .. string.sub(ARGV[2], 2))
return redis.status_reply('OK')
"""
)

REPORTS = (
    _RUN
    + """
-- ARGV: node, ...: gives this run, then each node's report or ''.
local reply = {run()}
for i = 1, #ARGV do reply[i + 1] = redis.call('GET', 'hawse:node:' .. ARGV[i]) or '' end
return reply
"""
)

_EACH_REPORT = (
    _RUN
    + """
-- What `say` gives for the report of each node named in ARGV[1] (between blanks), joined by blanks; '-' where a node
-- has said nothing in this run. Many short answers would cost the asker more than all of this costs here.
local function each_report(say)
  local mine, reply = '{"run":"' .. run() .. '"', {}
  for node in string.gmatch(ARGV[1], '%S+') do
    local text = redis.call('GET', 'hawse:node:' .. node)
    reply[#reply + 1] = text and string.sub(text, 1, #mine) == mine and say(text) or '-'
  end
  return table.concat(reply, ' ')
end
"""
)

LOOKS = (
    _EACH_REPORT
    + """
-- ARGV: nodes, between blanks. Gives for each what tells its report from one that says something else. That of a runner
-- which does not say it (another version's) is another whenever it reports.
return each_report(function(text)
  return string.match(text, '^{"run":"%x+","heard":%d+,"look":"(%x+)"') or 'h' .. string.match(text, '"heard":(%d+)')
end)
"""
)

APPLIED = (
    _EACH_REPORT
    + """
-- ARGV: nodes, between blanks; an epoch. Gives for each the last change that it has applied of that epoch's table.
return each_report(function(text)
  local epoch, applied = string.match(text, '"epoch":"([^"]*)","applied":(%d+)')
  return epoch == ARGV[2] and applied
end)
"""
)

NUDGE = """
-- ARGV: nodes, between blanks; the name of a node's queue without the node's; the broker's prefix; the key that says
-- that a nudge waits, without the queue; for how many milliseconds at most; a message in two parts, between which
-- belongs the queue's name; how many messages may wait in a queue. Gives how many were nudged.
local count = 0
for node in string.gmatch(ARGV[1], '%S+') do
  local name = ARGV[2] .. node
  if redis.call('SET', ARGV[4] .. name, '1', 'NX', 'PX', ARGV[5])
    and redis.call('LLEN', ARGV[3] .. name) < tonumber(ARGV[8]) then
    redis.call('LPUSH', ARGV[3] .. name, ARGV[6] .. name .. ARGV[7])
    count = count + 1
  end
end
return count
"""

RAISE = """
-- KEYS: a hash. ARGV: field, number, ...: brings each field to its number, unless it is higher already.
for i = 1, #ARGV, 2 do
  if tonumber(ARGV[i + 1]) > tonumber(redis.call('HGET', KEYS[1], ARGV[i]) or '0') then
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
  end
end
return redis.status_reply('OK')
"""

RECORD = """
-- KEYS: lists. ARGV: how many entries are kept, for how many seconds after the last, and an entry for each list.
for i = 1, #KEYS do
  redis.call('LPUSH', KEYS[i], ARGV[i + 2])
  redis.call('LTRIM', KEYS[i], 0, ARGV[1] - 1)
  redis.call('EXPIRE', KEYS[i], ARGV[2])
end
"""

TAKE_NETID = """
-- ARGV: namespace, candidate, ...: gives the NetID that the namespace has, else the first candidate that nobody has and
-- that is in no NetNamespace known.
local mine = redis.call('HGET', 'hawse:netid-of', ARGV[1])
if mine then return mine end
for i = 2, #ARGV do
  if redis.call('SISMEMBER', 'hawse:netids-seen', ARGV[i]) == 0
    and redis.call('HSETNX', 'hawse:netids', ARGV[i], ARGV[1]) == 1 then
    redis.call('HSET', 'hawse:netid-of', ARGV[1], ARGV[i])
    return ARGV[i]
  end
end
return false
"""

_BEATS = """
-- How long each node has been silent. Silence counts only while others were heard: when nobody could beat for longer
-- than `patience`, because Redis was away or its link was, everybody's silence begins anew with the next beat. Not that
-- of a node that counts as lost: it is silent until it beats itself.
local function time() local t = redis.call('TIME'); return tonumber(t[1]) + tonumber(t[2]) / 1000000 end
local function text(seconds) return string.format('%.3f', seconds) end
local function silences(now, patience, without_lost)
  local since, reply = tonumber(redis.call('GET', 'hawse:beats-since') or now), {}
  local late = redis.call('ZRANGEBYSCORE', 'hawse:beats', '-inf', text(now - patience), 'WITHSCORES')
  for i = 1, #late, 2 do
    local from, lost = tonumber(late[i + 1]), redis.call('HEXISTS', 'hawse:lost', late[i]) == 1
    if not lost then from = math.max(from, since) end
    if now - from > patience and not (lost and without_lost) then
      reply[#reply + 1] = late[i]
      reply[#reply + 1] = redis.call('HGET', 'hawse:beat-ips', late[i]) or ''
      reply[#reply + 1] = text(now - from)
    end
  end
  return reply
end
"""

BEAT = (
    _BEATS
    + """
-- ARGV: node, its IP, patience: notes that the node lives. Gives '1' if it counts as lost, else '0'; then node, IP,
-- seconds of silence, ... of those that are silent for longer than `patience` and do not count as lost yet.
local now, patience = time(), tonumber(ARGV[3])
local last = redis.call('ZREVRANGE', 'hawse:beats', 0, 0, 'WITHSCORES')
local paused = not last[2] or now - tonumber(last[2]) > patience
if paused or redis.call('EXISTS', 'hawse:beats-since') == 0 then redis.call('SET', 'hawse:beats-since', text(now)) end
redis.call('ZADD', 'hawse:beats', text(now), ARGV[1])
redis.call('HSET', 'hawse:beat-ips', ARGV[1], ARGV[2])
local reply = silences(now, patience, true)
table.insert(reply, 1, tostring(redis.call('HEXISTS', 'hawse:lost', ARGV[1])))
return reply
"""
)

SILENT = (
    _BEATS
    + """
-- ARGV: patience: gives node, IP, seconds of silence, ... of the nodes that are silent for longer.
return silences(time(), tonumber(ARGV[1]))
"""
)

EXPECT = (
    _BEATS
    + """
-- ARGV: node, IP, ...: all that have runners. The silence of one that never beat begins now; no others are waited for.
local wanted, now = {}, text(time())
for i = 1, #ARGV, 2 do
  wanted[ARGV[i]] = true
  redis.call('ZADD', 'hawse:beats', 'NX', now, ARGV[i])
  redis.call('HSETNX', 'hawse:beat-ips', ARGV[i], ARGV[i + 1])
end
for _, node in ipairs(redis.call('ZRANGE', 'hawse:beats', 0, -1)) do
  if not wanted[node] then
    redis.call('ZREM', 'hawse:beats', node)
    redis.call('HDEL', 'hawse:beat-ips', node)
  end
end
return redis.status_reply('OK')
"""
)

VOLUNTEER = """
-- ARGV: node, who asks, at most, milliseconds: gives 1 to the first `at most` within the time, to each once; then 0.
local key = 'hawse:asked:' .. ARGV[1]
local number = redis.call('SCARD', key)
if number >= tonumber(ARGV[3]) or redis.call('SADD', key, ARGV[2]) == 0 then return 0 end
if number == 0 then redis.call('PEXPIRE', key, ARGV[4]) end
return 1
"""
SEEN = """
-- KEYS: a list. ARGV: a digest of its content, after when it must have been first seen, how many contents to keep, and
-- for how many seconds. Gives when that was, as text, and how many contents were first seen in that whole second.
local at, after = tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or '-1'), tonumber(ARGV[2])
if at <= after then
  local t = redis.call('TIME')
  at = math.max(tonumber(t[1]) + tonumber(t[2]) / 1000000, after + 0.000001)
  redis.call('ZADD', KEYS[1], string.format('%.6f', at), ARGV[1])
  redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -1 - tonumber(ARGV[3]))
end
redis.call('EXPIRE', KEYS[1], ARGV[4])
local second = math.floor(at)
return {string.format('%.6f', at), redis.call('ZCOUNT', KEYS[1], second, '(' .. (second + 1))}
"""
