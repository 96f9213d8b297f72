-- The log as it is. KEYS: log, held. -> {'state', fields, runs} | {'none'}
local function act()
  if redis.call('EXISTS', log) == 0 then
    return { 'none' }
  end
  return state()
end
