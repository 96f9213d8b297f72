-- KEYS: log, held, shard. ARGV: number -> {'ok', value} | {'empty'} | {'damaged-slot'} | {'none'}
local function act()
  local _, _, _, kept_from, run_first, run_last = load()
  local n = tonumber(ARGV[1])
  if n < kept_from or not is_held(n, run_first, run_last) then
    return { 'empty' }
  end
  local value = redis.pcall('GET', KEYS[3])
  if type(value) == 'string' then
    return { 'ok', value }
  end
  return { value and 'damaged-slot' or 'empty' }
end
