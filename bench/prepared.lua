-- Requests prepared beforehand, for wrk: signing here would take the generator's time, not the service's.
-- Arguments: file with a request a line, its fields apart by tabs: path, header names and values, body.
local requests, sent = {}, 0
local format = string.format

function init(args)
  for line in io.lines(args[1]) do
    local fields = {}
    for field in line:gmatch("[^\t]+") do fields[#fields + 1] = field end
    local headers = {}
    for n = 2, #fields - 1, 2 do headers[fields[n]] = fields[n + 1] end
    requests[#requests + 1] = wrk.format("POST", fields[1], headers, fields[#fields])
  end
end

function request()
  sent = sent + 1
  return requests[(sent - 1) % #requests + 1]
end

function done(summary, latency, _)
  local e = summary.errors
  io.write(format(
    '\n@{"requests":%d,"seconds":%.6f,"refused":%d,"broken":%d,"p50_ms":%.3f,"p99_ms":%.3f}\n',
    summary.requests, summary.duration / 1e6, e.status, e.connect + e.read + e.write + e.timeout,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000))
end
