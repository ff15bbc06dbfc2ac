import json
from tests.integration.stage import *
def ev(**k): return {"specversion":"1.0","id":"1","source":"/a","type":"x","data":{"email":"a@b.co"}}|k
async def test_a(database_url):
  async with running_stage(database_url) as s:
    seen={}
    for n in list(range(850,1000)):
        deep='['*n+']'*n
        for ct,body in ((BATCHED,'[{"id":%s}]'%deep),(BATCHED,'[%s]'%deep),(STRUCTURED,'{"specversion":%s}'%deep),(STRUCTURED,json.dumps(ev()).replace('"x"',deep)),(STRUCTURED,'{"specversion":"1.0","id":"1","source":"/a","type":"x","data":%s}'%deep)):
            r=await s.post(body.encode(),ct)
            seen.setdefault((r.status_code, r.json().get("code"), r.json().get("field")),[]).append(n)
    for k,v in seen.items(): print(k,min(v),max(v),len(v))
    for e in [ev(data={"email":"a@b.co","n":2**64-1}),ev(data={"email":"a@b.co","n":2**63-1},id="2"),ev(data={"email":"a@b.co","n":-2**63},id="3"),ev(data={"email":"a@b.co","k"*100000:{"a":2**70}},id="3")]:
        r=await s.post(json.dumps(e).encode()); print(r.status_code,r.text[:300])
    lead=(await s.client.get("/v1/leads")).json()["items"][0]["id"]
    g=s.client.get
    for path in ["/v1/leads?q=%00","/v1/leads?owner=%00","/v1/leads?email=%00","/v1/leads?playbook=%00","/v1/leads?playbook=x","/v1/leads?stage=%00","/v1/leads?cursor=x","/v1/leads?limit=0","/v1/leads?limit=1000000000","/v1/leads?limit=x","/v1/leads/x","/v1/leads/%00","/v1/leads/x/timeline","/v1/transitions?after=-1","/v1/transitions?after=99999999999999999999999","/v1/transitions?limit=0","/v1/transitions/stream?after=-1","/v1/funnel?playbook=x","/v1/funnel?playbook=%00","/v1/funnel?from=x","/v1/funnel?from=0001-01-01T00:00:00%2B10:00","/v1/funnel?to=9999-12-31T23:59:59-10:00","/v1/funnel?from=0001-01-01","/v1/funnel?from=1e400","/v1/funnel?from=nan","/v1/funnel?by=%00","/v1/funnel?by=a%27b","/v1/funnel?from_stage=x","/v1/funnel?from_stage=lead&to_stage=x","/v1/funnel/durations","/v1/funnel/durations?from_stage=sql&to_stage=lead","/v1/funnel/durations?from_stage=lead&to_stage=sql&from=0001-01-01T00:00:00%2B10:00","/v1/nothing","/v1/events","/v1/leads?q="+"x"*201,"/v1/leads?owner=%ED%A0%80","/v1/leads?q=%ED%A0%80", "/v1/leads?email=%ED%A0%80", "/v1/leads?cursor=%ED%A0%80", "/v1/leads/%ED%A0%80"]:
        r=await g(path); print(path[:60],r.status_code,r.headers.get("content-type"),r.text[:200] if r.status_code!=200 else "")
    for le in ["²","1"*18, "x", "-1","1"*30]:
        import asyncio
        try:
            async with asyncio.timeout(1):
                r=await g("/v1/transitions/stream",headers={"last-event-id":le.encode("latin-1")}); print(le,r.status_code,r.text[:200])
        except TimeoutError: print(le, "stream")
    for b in [b'{',b'',b'[]',b'{"to":"nurture"}',b'{"to":"zz","reason":"x"}',b'{"to":"nurture","reason":" "}',b'{"to":"nurture","reason":"\\u0000"}',b'{"to":"nurture","reason":"\\ud800"}',b'{"to":"nurture","reason":"x","key":"\\u0000"}',b'{"to":"nurture","reason":"x","key":""}',b'{"to":"nurture","reason":"x","key":"nokey"}',b'{"to":"nurture","reason":"x","zz":1}',b'{"to":"nurture","reason":"x","\\ud800":1}',b'{"to":"nurture","reason":"x","\\u0000":1}',b'{"to":"nurture","reason":"x","playbook":"\\u0000"}',b'{"to":"nurture","reason":"x","playbook":"zz"}',b'{"to":"\\u0000","reason":"x"}',b'{"to":"nurture","reason":1e999}',b'{"to":"nurture","reason":"x","force":"zz"}',b'\xff',b'{"to":"nurture","reason":"'+b'x'*10000+b'"}', b'['*2000+b']'*2000, b'{"to":NaN,"reason":"x"}', b'{"to":'+b'9'*5000+b',"reason":"x"}', b'{"to":"nurture","reason":"\xed\xa0\x80"}']:
        r=await s.client.post(f"/v1/leads/{lead}/transitions",content=b,headers={"content-type":"application/json"}); print(b[:60],r.status_code,r.headers["content-type"],r.text[:250])
    r=await s.client.post(f"/v1/leads/{lead}/transitions",content=b'{"to":"nurture","reason":"x"}',headers={"content-type":"text/plain"}); print(r.status_code, r.text[:250])
    r=await s.client.post(f"/v1/leads/01a20b67-79cc-7018-8be3-f416a93ee235/transitions",content=b'{"to":"nurture","reason":"x"}'); print(r.status_code, r.text[:250])
    r=await s.client.get("/v1/leads",headers={"authorization":"", "cookie":'baton_session="bat_\\000x_y"'}); print(r.status_code,r.text[:100])
    s.client.headers.pop("authorization")
    r=await s.client.get("/v1/leads",headers={"cookie":'baton_session="bat_\\000x_y"'}); print(r.status_code,r.text[:100])
    r=await s.client.delete("/v1/leads"); print(r.status_code,r.text)
