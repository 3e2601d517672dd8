-- For wrk: each request is the recorded AdmissionReview for another namespace. Arguments: the file with the review, in
-- which NAME and UID stand where these belong; the run, which is part of each name; how many milliseconds a connection
-- rests between two requests, on average; the seed of these rests. Prints one line of JSON.
--
-- wrk's timers are of whole milliseconds. Connections that all rest equally long fall in step: those of one millisecond
-- ask together, wait for one another, and are together again after the rest. Clients that know nothing of one another
-- do not, so a rest is a whole number of milliseconds drawn from 1 to twice the average less 1, each as often.
local pieces, run, rest, count = {}, "", 0, 0
local path = "/admit/namespaces"

function init(arguments)
  local file = assert(io.open(arguments[1], "rb"))
  local text = file:read("*a")
  file:close()
  run, rest = arguments[2], tonumber(arguments[3])
  wrk.method = "POST"
  wrk.headers["Content-Type"] = "application/json"
  wrk.headers["Accept"] = "application/json, */*"
  local from = 1
  for position, word in text:gmatch("()@(%u+)@") do
    pieces[#pieces + 1] = text:sub(from, position - 1)
    pieces[#pieces + 1] = word
    from = position + #word + 2
  end
  pieces[#pieces + 1] = text:sub(from)
  if rest > 0 then
    math.randomseed(tonumber(arguments[4]))
    delay = function() return math.random(1, 2 * rest - 1) end
  end
end

function request()
  count = count + 1
  local values = {
    NAME = string.format("bench-%s-%07d", run, count),
    UID = string.format("0fe1bc06-9578-495b-%s-%012d", run, count),
  }
  local parts = {}
  for index, piece in ipairs(pieces) do
    parts[index] = index % 2 == 0 and values[piece] or piece
  end
  return wrk.format(nil, path, nil, table.concat(parts))
end

function done(summary, latency, _)
  local errors = summary.errors
  io.write(string.format(
    '{"requests":%d,"seconds":%.6f,"p50":%.3f,"p99":%.3f,"max":%.3f,"errors":%d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    latency.max / 1e3, errors.connect + errors.read + errors.write + errors.status + errors.timeout
  ))
end
