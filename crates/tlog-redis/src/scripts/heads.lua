-- KEYS: log, held. ARGV: from, to, how many bytes of head parts, how many numbers to look at
-- -> {'ok', number to go on from or '', number, prefix and head part or '' if damaged, number, ...} | {'none'}
--
-- The entry that reaches the bytes is the last one.
local function act()
  local _, _, _, kept_from, run_first, run_last = load()
  local from, to = math.max(tonumber(ARGV[1]), kept_from), tonumber(ARGV[2])
  local bytes, budget = tonumber(ARGV[3]), tonumber(ARGV[4])
  local reply, go_on = { 'ok', '' }, nil

  -- Most head parts are short: one read gets them, and a little of the payload.
  local GUESS = 2048
  local function u32(value, at)
    local a, b, c, d = string.byte(value, at, at + 3)
    return a + b * 256 + c * 65536 + d * 16777216
  end
  local function read(key)
    local value = redis.pcall('GETRANGE', key, 0, GUESS - 1)
    if type(value) ~= 'string' then
      return ''
    elseif value == '' then
      return redis.call('EXISTS', key) == 1 and '' or nil
    elseif #value < PREFIX then
      return ''
    end
    local head, payload = u32(value, 21), u32(value, 25)
    if redis.call('STRLEN', key) ~= PREFIX + head + payload then
      return ''
    elseif PREFIX + head > #value then
      value = redis.call('GETRANGE', key, 0, text(PREFIX + head - 1))
    end
    bytes = bytes - head
    return string.sub(value, 1, PREFIX + head)
  end
  local function look(first, last)
    for n = math.max(first, from), math.min(last, to) do
      if budget == 0 or (bytes <= 0 and #reply > 2) then
        go_on = n
        return
      end
      budget = budget - 1
      local value = read(shard_key(n))
      if value then
        reply[#reply + 1] = text(n)
        reply[#reply + 1] = value
      end
    end
  end

  if from <= to then
    if from < run_first then
      local rank = rank_at(from)
      -- Each of them but the first has a number to look at: these are enough.
      local members = redis.call('ZRANGE', held, text(rank), text(rank + budget))
      for _, member in ipairs(members) do
        local first, last = run(member)
        look(first, last)
        if not go_on and budget == 0 then
          go_on = last + 1
        end
        if go_on or first > to then
          break
        end
      end
    end
    if not go_on and run_last > 0 then
      look(run_first, run_last)
    end
    if go_on and go_on <= to then
      reply[2] = text(go_on)
    end
  end
  return reply
end
