-- What append.lua does, for the one case that nearly all are: the next number of the newest run, by the writer whose epoch was promised
-- last, of the log that it means, with the value put there already. Nothing is defined here that is not needed for that.
-- KEYS: log, held, shard, where the value was put already
-- ARGV: identity, epoch, number, the number before it, committed, layout
-- -> {'ok', identity} | {'unstaged'}, both as from append.lua | {'slow'}: it is another case, and nothing was written
local f = redis.pcall('HMGET', KEYS[1], 'identity', 'epoch', 'run_last', 'layout', 'committed', 'first')
if f.err or f[1] ~= ARGV[1] or f[2] ~= ARGV[2] or f[4] ~= ARGV[6] then
  -- Most likely it is refused. A writer that is refused all the time must not fill the memory.
  redis.pcall('DEL', KEYS[4])
  return { 'slow' }
end
-- Of number 1 there is none before it: '0' says that nothing is held.
if f[3] ~= ARGV[4] or f[3] == '0' then
  return { 'slow' }
end
local known, first = f[5], f[6]
if not known or not first or not string.find(known, '^%d+$') or not string.find(first, '^%d+$') then
  return { 'slow' }
end
if tonumber(first) > tonumber(ARGV[3]) then
  return { 'slow' }
end
if not redis.pcall('RENAME', KEYS[4], KEYS[3]).ok then
  return { 'unstaged' }
end
redis.call('PERSIST', KEYS[3])
if tonumber(ARGV[5]) > tonumber(known) then
  redis.call('HSET', KEYS[1], 'run_last', ARGV[3], 'committed', ARGV[5])
else
  redis.call('HSET', KEYS[1], 'run_last', ARGV[3])
end
return { 'ok', f[1] }
