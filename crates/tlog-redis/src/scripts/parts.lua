-- KEYS: log, held, shard. ARGV: number, first and last byte of a part of the payload, first and last of the next, ...
-- -> {'ok', part, ...} | {'empty'} | {'none'}
local function act()
  local _, _, _, kept_from, run_first, run_last = load()
  local n = tonumber(ARGV[1])
  if n < kept_from or not is_held(n, run_first, run_last) then
    return { 'empty' }
  end
  local lengths = redis.pcall('GETRANGE', KEYS[3], 20, 23)
  if type(lengths) ~= 'string' or #lengths < 4 then
    return { 'empty' }
  end
  local a, b, c, d = string.byte(lengths, 1, 4)
  local payload = PREFIX + a + b * 256 + c * 65536 + d * 16777216
  local reply = { 'ok' }
  for i = 2, #ARGV, 2 do
    reply[#reply + 1] = redis.call('GETRANGE', KEYS[3], text(payload + ARGV[i]), text(payload + ARGV[i + 1]))
  end
  return reply
end
