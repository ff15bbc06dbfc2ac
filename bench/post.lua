-- Structured CloudEvents for wrk: every body unique, leads rotating through a short story.
-- Arguments: token, prefix of ids and addresses, number of stored leads to write about (0: new ones).
-- A step of a story comes WINDOW requests after the one before it, so a lead's events keep their order.
local WINDOW = 1000
local STEPS = {
  { "lead.created", ',"name":"Ada Albers","company":"Northwind Logistics","title":"Head of Operations","employees":250,"country":"DE","origin":"organic_search"' },
  { "page.viewed", ',"url":"https://example.com/pricing"' },
  { "demo.requested", ',"form":"demo"' },
  { "email.clicked", ',"campaign":"spring"' },
  { "meeting.booked", ',"with_role":"ae"' },
}
local headers = { ["Content-Type"] = "application/cloudevents+json" }
local prefix, stored = "", 0
local sent, second, in_second = 0, 0, 0
local format, time, date, floor = string.format, os.time, os.date, math.floor
local stamp = ""

function init(args)
  headers["Authorization"] = "Bearer " .. args[1]
  prefix = args[2]
  stored = tonumber(args[3])
  math.randomseed(tonumber(args[4]))
  picked = {}
end

function request()
  local now = time()
  if now ~= second then
    second, in_second, stamp = now, 0, date("!%Y-%m-%dT%H:%M:%S", now)
  end
  in_second = in_second + 1
  local block = floor(sent / (WINDOW * #STEPS))
  local place = sent % WINDOW
  local step = STEPS[floor(sent / WINDOW) % #STEPS + 1]
  local email
  if stored > 0 then
    if step == STEPS[1] then picked[place] = math.random(0, stored - 1) end
    email = format("lead-%07d@fill.example", picked[place])
  else
    email = format("%s-%d@bench.example", prefix, block * WINDOW + place)
  end
  local body = format(
    '{"specversion":"1.0","id":"%s-%d","source":"/bench","type":"%s","time":"%s.%06dZ","data":{"email":"%s"%s}}',
    prefix, sent, step[1], stamp, in_second, email, step[2])
  sent = sent + 1
  return wrk.format("POST", "/v1/events", headers, body)
end

function done(summary, latency, requests)
  local e = summary.errors
  io.write(format(
    '\n@{"requests":%d,"seconds":%.6f,"refused":%d,"broken":%d,"p50_ms":%.3f,"p99_ms":%.3f}\n',
    summary.requests, summary.duration / 1e6, e.status, e.connect + e.read + e.write + e.timeout,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000))
end
