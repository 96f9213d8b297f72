-- Behind every script: `act` is what it does. Errors come out the same whatever the server's version.
local done, reply = pcall(act)
if done then
  return reply
end
if type(reply) == 'table' and reply.reply then
  return reply.reply
end
local message = type(reply) == 'table' and reply.err or tostring(reply)
-- Redis 6 writes "@user_script: 12: -OOM command ...", and no version has a code for what a user may not do.
message = string.gsub(string.gsub(message, '^@?user_script: ?%d+: ', ''), '^@?user_script: ?%d+: ', '')
message = string.gsub(string.gsub(message, '^%-', ''), '%s+$', '')
if string.find(message, 'The user executing the script', 1, true) or string.find(message, 'ACL failure', 1, true) then
  message = 'NOPERM ' .. string.gsub(message, '^ERR ', '')
elseif not string.find(message, '^%u+ ') then
  message = 'ERR ' .. message
end
if string.find(message, 'WRONGTYPE', 1, true) then
  for i, kind in ipairs(KINDS) do
    local is = redis.call('TYPE', KEYS[i]).ok
    if is ~= 'none' and is ~= kind then
      return { 'damaged', KEYS[i] .. ' (it is a ' .. is .. ')' }
    end
  end
end
return redis.error_reply(message)
