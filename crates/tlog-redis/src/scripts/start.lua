-- KEYS: log, held. ARGV: identity, epoch, number, members, the number to look from (number at first), how many numbers to look at
-- -> {'ok', identity} | {'more', number to look from} | {'fenced', epoch} | {'none'} | {'other', identity}
--
-- Drops what older epochs wrote at and above the number; the call that reaches the end also records the start. Until then it is a
-- promise that has dropped something that its opening had found to be not committed.
--
-- A writer sends its start again whenever a store comes back or is replaced, when its log may be long. So it is known what need not
-- be looked at: whatever is held from `clean_from` on and above `late` is of the epoch `clean_epoch` or a higher one. Only a fill can
-- bring something older there, and says so in `late`.
local function act()
  local identity, promised, _, _, run_first, run_last = load()
  local epoch, from, from_number = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[5])
  if promised > epoch then
    return { 'fenced', text(promised) }
  end
  refuse_other(identity, ARGV[1])
  local budget = tonumber(ARGV[6])

  local f = redis.call('HMGET', log, 'starts', 'members', 'clean_epoch', 'clean_from', 'late')
  local starts, kept_members = f[1], f[2]
  local clean_epoch, clean_from, late = number(f[3], 'clean_epoch'), number(f[4], 'clean_from'), number(f[5], 'late')
  local to = LAST
  if clean_epoch >= epoch then
    to = math.max(clean_from - 1, late)
  end
  local kept = {}
  local seen = 0
  for entry, e, n in string.gmatch(starts or '-', '((%d+):(%d+) ?)') do
    seen = seen + #entry
    number(e, 'starts')
    if number(n, 'starts') < from then
      kept[#kept + 1] = e .. ':' .. n
    end
  end
  if not starts or seen ~= #starts then
    damaged(log, 'starts')
  end
  kept[#kept + 1] = ARGV[2] .. ':' .. ARGV[3]

  local function version(given)
    local e, change = string.match(given or '', '^(%d+) (%d+) ')
    return number(e, 'members'), number(change, 'members')
  end
  local new_epoch, new_change = version(ARGV[4])
  local old_epoch, old_change = version(kept_members)
  local newer = new_epoch > old_epoch or (new_epoch == old_epoch and new_change >= old_change)

  -- Looks at what is held from from_number on. `out` are the runs that change, `pieces` what is left of them.
  local out, pieces, dropped, go_on = {}, {}, {}, nil
  local function keep(first, last)
    local piece = pieces[#pieces]
    if first > last then
      return
    elseif piece and piece[2] + 1 >= first then
      piece[2] = math.max(piece[2], last)
    else
      pieces[#pieces + 1] = { first, last }
    end
  end
  local function look(first, last)
    keep(first, math.min(last, from_number - 1))
    for n = math.max(first, from_number), math.min(last, to) do
      if budget == 0 then
        keep(n, last)
        go_on = n
        return
      end
      budget = budget - 1
      local key = shard_key(n)
      local prefix = redis.pcall('GETRANGE', key, 0, 19)
      local written = type(prefix) == 'string' and tonumber(string.match(prefix, '^....(%d+)$'))
      if written and written >= epoch then
        keep(n, n)
      else
        dropped[#dropped + 1] = key
      end
    end
    keep(math.max(first, to + 1), last)
  end
  if from_number <= to then
    local rank = rank_at(from_number)
    for _, member in ipairs(redis.call('ZRANGE', held, text(rank), text(rank + budget))) do
      local first, last = run(member)
      if first > to then
        break
      elseif last >= from_number then
        out[#out + 1] = member
        look(first, last)
        if budget == 0 then
          go_on = go_on or last + 1
          break
        end
      end
    end
    if not go_on and run_last > 0 and run_last >= from_number and run_first <= to then
      out.last_run = true
      look(run_first, run_last)
    end
  end

  write_even_if_full()
  if #dropped > 0 then
    redis.call('DEL', unpack(dropped))
    if out.last_run then
      local last = table.remove(pieces)
      if last then
        run_first, run_last = last[1], last[2]
      else
        -- What is now the last run, if any is left, is below all that was looked at.
        for _, member in ipairs(out) do
          redis.call('ZREM', held, member)
        end
        out = {}
        local member = redis.call('ZRANGE', held, -1, -1)[1]
        run_first, run_last = 0, 0
        if member then
          run_first, run_last = run(member)
          redis.call('ZREM', held, member)
        end
      end
      redis.call('HSET', log, 'run_first', text(run_first), 'run_last', text(run_last))
    end
    put_runs(out, pieces)
  end
  if go_on then
    -- From now on it is told what a fill brings to where this start has looked already.
    if clean_epoch < epoch and from_number == from then
      redis.call('HSET', log, 'clean_epoch', '0', 'clean_from', ARGV[3], 'late', '0')
    elseif from < clean_from then
      redis.call('HSET', log, 'clean_from', ARGV[3], 'late', text(to))
    end
    redis.call('HSET', log, 'epoch', ARGV[2])
    return { 'more', text(go_on) }
  end
  if clean_epoch < epoch or from < clean_from or late >= clean_from then
    clean_from = from
  end
  if from_number == from then
    late = 0
  end
  redis.call('HSET', log, 'epoch', ARGV[2], 'starts', table.concat(kept, ' '), 'clean_epoch', ARGV[2],
    'clean_from', text(clean_from), 'late', text(late))
  if newer then
    redis.call('HSET', log, 'members', ARGV[4])
  end
  return { 'ok', identity }
end
