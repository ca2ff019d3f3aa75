use serde_json::json;

use super::*;

fn lines(text: &str) -> Vec<&str> {
    text.lines().map(str::trim_end).collect()
}

#[test]
fn endpoints_are_listed_with_their_clusters() {
    let told = json!({ "outbound|80||web.shop.svc.cluster.local": {
        "connections": 2, "pending": 0, "active": 1, "retries": 0, "ejected": 1,
        "endpoints": [{
            "address": "10.0.0.7:8080", "workload": "web", "health": "healthy", "weight": 1, "mtls": true,
            "active": 1, "consecutive_failures": 0, "ejections": 0,
        }],
    } });
    let name = "outbound|80||web.shop.svc.cluster.local";
    let table = endpoints(&told);
    let rows = lines(&table);
    assert!(
        rows[1].starts_with("10.0.0.7:8080  healthy  mTLS"),
        "{table}"
    );
    assert!(rows[1].ends_with(name), "{table}");
    let table = clusters(&told);
    let cells: Vec<_> = lines(&table)[1].split_whitespace().collect();
    assert_eq!(cells, [name, "1", "1", "2", "1", "0", "0"]);
}

#[test]
fn routes_say_what_they_want_and_where_it_goes() {
    let told = json!({ "routes": {
        "plain": [{
            "matches": { "path": { "prefix": "/" }, "method": "GET", "headers": [{ "name": "x" }], "query": [] },
            "action": { "forward": { "clusters": [{ "name": "a", "weight": 90 }, { "name": "b", "weight": 10 }] } },
        }],
        "hosts": { "hosts": [{ "domains": ["a.example", "b.example"], "routes": [{
            "matches": { "path": { "exact": "/x" }, "method": null, "headers": [], "query": [] },
            "action": { "respond": 404 },
        }] }] },
    } });
    let table = routes(&told);
    let rows: Vec<Vec<_>> = lines(&table)
        .into_iter()
        .map(|line| {
            line.split("  ")
                .map(str::trim)
                .filter(|it| !it.is_empty())
                .collect()
        })
        .collect();
    assert_eq!(
        rows[1],
        ["hosts", "a.example,b.example", "exact /x", "respond 404"]
    );
    assert_eq!(
        rows[2],
        [
            "plain",
            "*",
            "GET prefix / header x",
            "forward a (90), b (10)"
        ]
    );
}

#[test]
fn a_certificate_comes_before_its_roots() {
    let told = json!({
        "id": "spiffe://cluster.local/ns/shop/sa/web", "serial": "01", "not_after": "2027-01-01T00:00:00Z", "valid": false,
        "roots": [{ "subject": "CN=root", "serial": "02", "not_after": "2036-01-01T00:00:00Z" }],
    });
    let table = certs(&told);
    let rows = lines(&table);
    assert!(
        rows[1].starts_with("spiffe://cluster.local/ns/shop/sa/web  NOT VALID  2027"),
        "{table}"
    );
    assert!(rows[2].starts_with("CN=root"), "{table}");
}
