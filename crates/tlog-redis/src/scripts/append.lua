-- KEYS: log, held, shard, where the value was put already
-- ARGV: identity, epoch, number, committed, value ('' if it was put already), a prefix that is known to be damaged ('' for none)
-- -> {'ok', identity} | {'fenced', epoch} | {'newer', prefix of the shard in the way} | {'unstaged'} | {'none'} | {'other', identity}
local taken = false

local function store()
  local identity, promised, known, kept_from, run_first, run_last = load()
  local epoch, n, committed = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
  if promised > epoch then
    return { 'fenced', text(promised) }
  end
  refuse_other(identity, ARGV[1])
  local fields = { 'HSET', log }
  local change
  if n >= kept_from then
    change = hold(n, run_first, run_last)
    if change[1] then
      -- A fill can have brought what a newer epoch wrote. Only the client can tell whether that is what it says to be.
      local prefix = redis.pcall('GETRANGE', KEYS[3], 0, PREFIX - 1)
      local written = type(prefix) == 'string' and tonumber(string.match(string.sub(prefix, 1, 20), '^....(%d+)$'))
      if written and written > epoch and prefix ~= ARGV[6] then
        return { 'newer', prefix }
      end
    end
    -- The shard before the number is said to be held; and it is the write that a full server refuses.
    if ARGV[5] ~= '' then
      redis.call('SET', KEYS[3], ARGV[5])
    elseif redis.pcall('RENAME', KEYS[4], KEYS[3]).ok then
      redis.call('PERSIST', KEYS[3])
    else
      -- It is not there. If there is another reason, the value itself will meet it.
      return { 'unstaged' }
    end
    taken = true
    put_runs(change[4], change[5])
    if change[2] ~= run_first then
      fields[#fields + 1] = 'run_first'
      fields[#fields + 1] = text(change[2])
    end
    if change[3] ~= run_last then
      fields[#fields + 1] = 'run_last'
      fields[#fields + 1] = text(change[3])
    end
  end
  if epoch > promised then
    fields[#fields + 1] = 'epoch'
    fields[#fields + 1] = ARGV[2]
  end
  if committed > known then
    fields[#fields + 1] = 'committed'
    fields[#fields + 1] = ARGV[4]
  end
  if #fields > 2 then
    redis.call(unpack(fields))
  end
  return { 'ok', identity }
end

local function act()
  local done, reply = pcall(store)
  if KEYS[4] and not taken then
    -- A writer that is refused all the time must not fill the memory. If this cannot be done, it expires.
    redis.pcall('DEL', KEYS[4])
  end
  if not done then
    error(reply, 0)
  end
  return reply
end
