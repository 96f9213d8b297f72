-- What adding number n to the numbers held changes: {held already, run_first, run_last, members to take out, members to put in}.
-- Only reads. The last run is in the hash, so that appending the next number touches nothing else.
local function hold(n, run_first, run_last)
  if run_last == 0 then
    return { false, n, n, {}, {} }
  elseif n == run_last + 1 then
    return { false, run_first, n, {}, {} }
  elseif n > run_last then
    return { false, n, n, {}, { { run_first, run_last } } }
  elseif n >= run_first then
    return { true, run_first, run_last, {}, {} }
  end
  -- The runs on both sides of it; the one above can be the last.
  local rank = rank_at(n)
  local members = redis.call('ZRANGE', held, text(rank), text(rank + 1))
  local below, above = members[1], members[2]
  local first, last = n, n
  local out = {}
  if below then
    local below_first, below_last = run(below)
    if below_first > n then
      below, above = nil, below
    elseif below_last >= n then
      return { true, run_first, run_last, {}, {} }
    elseif below_last == n - 1 then
      first = below_first
      out[#out + 1] = below
    end
  end
  if above then
    local above_first, above_last = run(above)
    if above_first == n + 1 then
      last = above_last
      out[#out + 1] = above
    end
  end
  if last + 1 == run_first then
    return { false, first, run_last, out, {} }
  end
  return { false, run_first, run_last, out, { { first, last } } }
end

local function put_runs(out, put)
  for _, member in ipairs(out) do
    redis.call('ZREM', held, member)
  end
  for _, pair in ipairs(put) do
    redis.call('ZADD', held, text(pair[1]), text(pair[1]) .. '-' .. text(pair[2]))
  end
end
