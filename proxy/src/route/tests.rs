//! Which route a request takes, and what its route does to it.

use http::{HeaderName, HeaderValue, Method, Request, StatusCode};

use super::*;
use crate::config::route::{
    HeaderMatch, PathMatch, PathRewrite, QueryMatch, Redirect, Regex, RetryPolicy, RouteAction,
    RouteMatch, StringMatch, WeightedCluster,
};

fn regex(pattern: &str) -> Regex {
    let compiled = regex_automata::meta::Regex::new(&format!("^(?:{pattern})$")).unwrap();
    Regex::new(pattern, compiled)
}

fn any() -> RouteMatch {
    RouteMatch {
        path: PathMatch::Prefix("/".into()),
        method: None,
        headers: Vec::new(),
        query: Vec::new(),
        grpc: false,
    }
}

fn header(name: &'static str, value: StringMatch, invert: bool) -> RouteMatch {
    let name = HeaderName::from_static(name);
    RouteMatch {
        headers: vec![HeaderMatch {
            name,
            value,
            invert,
        }],
        ..any()
    }
}

fn query(name: &str, value: StringMatch) -> RouteMatch {
    RouteMatch {
        query: vec![QueryMatch {
            name: name.into(),
            value,
        }],
        ..any()
    }
}

fn path(path: PathMatch) -> RouteMatch {
    RouteMatch { path, ..any() }
}

fn get(uri: &str, headers: &[(&str, &str)]) -> Parts {
    let mut request = Request::builder().uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

#[test]
fn a_route_matches_exactly_what_it_says() {
    use PathMatch::{Exact, Prefix, SegmentPrefix};
    use StringMatch::{Exact as Is, Prefix as Starts, Present};
    let post = RouteMatch {
        method: Some(Method::POST),
        ..any()
    };
    let grpc = RouteMatch {
        grpc: true,
        ..any()
    };
    let rows: Vec<(&str, RouteMatch, Parts, bool)> = vec![
        ("anything", any(), get("/x", &[]), true),
        ("exact", path(Exact("/a".into())), get("/a?b=c", &[]), true),
        (
            "exact, longer",
            path(Exact("/a".into())),
            get("/a/", &[]),
            false,
        ),
        (
            "exact, other case",
            path(Exact("/a".into())),
            get("/A", &[]),
            false,
        ),
        ("prefix", path(Prefix("/a".into())), get("/ab", &[]), true),
        (
            "prefix, other",
            path(Prefix("/a".into())),
            get("/b", &[]),
            false,
        ),
        (
            "segment, equal",
            path(SegmentPrefix("/a".into())),
            get("/a", &[]),
            true,
        ),
        (
            "segment, below",
            path(SegmentPrefix("/a".into())),
            get("/a/b", &[]),
            true,
        ),
        (
            "segment, longer word",
            path(SegmentPrefix("/a".into())),
            get("/ab", &[]),
            false,
        ),
        (
            "segment with slash",
            path(SegmentPrefix("/a/".into())),
            get("/a", &[]),
            true,
        ),
        (
            "segment root",
            path(SegmentPrefix("/".into())),
            get("/x/y", &[]),
            true,
        ),
        (
            "regex",
            path(PathMatch::Regex(regex("/v[0-9]+"))),
            get("/v12", &[]),
            true,
        ),
        (
            "regex, part only",
            path(PathMatch::Regex(regex("/v[0-9]"))),
            get("/v12", &[]),
            false,
        ),
        ("method, other", post, get("/", &[]), false),
        (
            "header",
            header("x-a", Is("1".into()), false),
            get("/", &[("x-a", "1")]),
            true,
        ),
        (
            "header, other value",
            header("x-a", Is("1".into()), false),
            get("/", &[("x-a", "2")]),
            false,
        ),
        (
            "header, absent",
            header("x-a", Present, false),
            get("/", &[]),
            false,
        ),
        (
            "header, present",
            header("x-a", Present, false),
            get("/", &[("x-a", "")]),
            true,
        ),
        (
            "header, prefix",
            header("x-a", Starts("ab".into()), false),
            get("/", &[("x-a", "abc")]),
            true,
        ),
        (
            "header, twice",
            header("x-a", Is("1,2".into()), false),
            get("/", &[("x-a", "1"), ("x-a", "2")]),
            true,
        ),
        (
            "header, inverted",
            header("x-a", Is("1".into()), true),
            get("/", &[("x-a", "1")]),
            false,
        ),
        (
            "header, inverted, absent",
            header("x-a", Is("1".into()), true),
            get("/", &[]),
            true,
        ),
        (
            "query",
            query("a", Is("1".into())),
            get("/?b=2&a=1", &[]),
            true,
        ),
        (
            "query, other value",
            query("a", Is("1".into())),
            get("/?a=2", &[]),
            false,
        ),
        (
            "query, first counts",
            query("a", Is("1".into())),
            get("/?a=2&a=1", &[]),
            false,
        ),
        (
            "query, encoded",
            query("a b", Is("c/d".into())),
            get("/?a%20b=c%2Fd", &[]),
            true,
        ),
        (
            "query, no value",
            query("a", Present),
            get("/?a", &[]),
            true,
        ),
        ("query, absent", query("a", Present), get("/", &[]), false),
        (
            "grpc",
            grpc.clone(),
            get("/", &[("content-type", "application/grpc+proto")]),
            true,
        ),
        (
            "grpc-web",
            grpc.clone(),
            get("/", &[("content-type", "application/grpc-web")]),
            false,
        ),
        (
            "json",
            grpc,
            get("/", &[("content-type", "application/json")]),
            false,
        ),
    ];
    for (name, rule, request, expected) in rows {
        assert_eq!(matching::matches(&rule, &request), expected, "{name}");
    }
}

#[test]
fn the_first_matching_route_wins_and_none_is_none() {
    let route = |name: &str, matches| {
        Arc::new(Route {
            name: name.into(),
            matches,
            action: RouteAction::Respond(StatusCode::OK),
            request_headers: HeaderChanges::default(),
            response_headers: HeaderChanges::default(),
        })
    };
    let table = RouteTable {
        name: "t".into(),
        routes: vec![
            route("first", path(PathMatch::Exact("/a".into()))),
            route("second", path(PathMatch::Prefix("/a".into()))),
        ],
        hosts: None,
    };
    assert_eq!(&*find(&table, &get("/a", &[])).unwrap().name, "first");
    assert_eq!(&*find(&table, &get("/ab", &[])).unwrap().name, "second");
    assert!(find(&table, &get("/b", &[])).is_none());
}

#[test]
fn clusters_share_traffic_by_weight() {
    let cluster = |name: &str, weight| WeightedCluster {
        name: name.into(),
        weight,
        request_headers: HeaderChanges::default(),
        response_headers: HeaderChanges::default(),
    };
    let forward = Forward {
        clusters: vec![cluster("off", 0), cluster("v1", 90), cluster("v2", 10)],
        total_weight: 100,
        cluster_not_found: StatusCode::SERVICE_UNAVAILABLE,
        path_rewrite: None,
        host_rewrite: None,
        timeout: None,
        per_try_timeout: None,
        retry: RetryPolicy::default(),
        hash: Vec::new(),
    };
    let mut rng = fastrand::Rng::with_seed(3);
    let picks: Vec<_> = (0..1_000)
        .map(|_| {
            forward.clusters[pick_cluster(&forward, &mut rng)]
                .name
                .clone()
        })
        .collect();
    let v2 = picks.iter().filter(|name| &***name == "v2").count();
    assert!((70..130).contains(&v2), "{v2}");
    assert!(picks.iter().all(|name| &**name != "off"));
}

#[test]
fn paths_are_rewritten_by_segment_and_keep_their_query() {
    let full = |to: &str| PathRewrite::Full(to.into());
    let prefix = |to: &str| PathRewrite::Prefix(to.into());
    let segment = |of: &str| path(PathMatch::SegmentPrefix(of.into()));
    let rows = [
        ("full", any(), full("/new"), "/old/path?q=1", "/new?q=1"),
        (
            "prefix",
            segment("/foo"),
            prefix("/xyz"),
            "/foo/bar",
            "/xyz/bar",
        ),
        (
            "prefix, slash in match",
            segment("/foo/"),
            prefix("/xyz"),
            "/foo/bar",
            "/xyz/bar",
        ),
        (
            "prefix, slash in both",
            segment("/foo/"),
            prefix("/xyz/"),
            "/foo/bar?x",
            "/xyz/bar?x",
        ),
        (
            "prefix, whole path",
            segment("/foo"),
            prefix("/xyz"),
            "/foo",
            "/xyz",
        ),
        (
            "prefix, stripped",
            segment("/strip"),
            prefix("/"),
            "/strip/three",
            "/three",
        ),
        (
            "prefix, stripped whole",
            segment("/strip"),
            prefix("/"),
            "/strip",
            "/",
        ),
        (
            "prefix, root",
            segment("/"),
            prefix("/xyz"),
            "/foo",
            "/xyz/foo",
        ),
    ];
    for (name, matched, change, from, to) in rows {
        let mut request = get(from, &[]);
        rewrite(&matched, Some(&change), None, &mut request).unwrap();
        assert_eq!(request.uri, to, "{name}");
    }
}

#[test]
fn hosts_are_rewritten_where_the_request_carries_them() {
    let host = HeaderValue::from_static("b.example");
    let mut http1 = get("/p", &[("host", "a.example")]);
    rewrite(&any(), None, Some(&host), &mut http1).unwrap();
    assert_eq!(
        (http1.headers["host"].as_bytes(), http1.uri.path()),
        (&b"b.example"[..], "/p")
    );
    let mut http2 = get("http://a.example/p", &[]);
    rewrite(&any(), None, Some(&host), &mut http2).unwrap();
    assert_eq!(http2.uri, "http://b.example/p");
    assert!(!http2.headers.contains_key("host"));
    let bad = HeaderValue::from_static("not a host");
    assert!(rewrite(&any(), None, Some(&bad), &mut http2).is_err());
}

#[test]
fn redirects_follow_the_gateway_api() {
    let plain = || Redirect {
        scheme: None,
        host: None,
        port: None,
        path: None,
        status: StatusCode::FOUND,
    };
    let https = || Redirect {
        scheme: Some("https".parse().unwrap()),
        ..plain()
    };
    let host = || Redirect {
        host: Some("b.example".into()),
        ..plain()
    };
    let rows = [
        (
            "host, port 80",
            host(),
            "a.example",
            80,
            "http://b.example/p?q",
        ),
        (
            "host, other port",
            host(),
            "a.example",
            8080,
            "http://b.example:8080/p?q",
        ),
        (
            "host header's port",
            host(),
            "a.example:81",
            80,
            "http://b.example:81/p?q",
        ),
        (
            "scheme drops the port",
            https(),
            "a.example:8080",
            8080,
            "https://a.example/p?q",
        ),
        (
            "port",
            Redirect {
                port: Some(8443),
                ..https()
            },
            "a",
            80,
            "https://a:8443/p?q",
        ),
        (
            "port of the scheme",
            Redirect {
                port: Some(443),
                ..https()
            },
            "a",
            80,
            "https://a/p?q",
        ),
        (
            "path",
            Redirect {
                path: Some(PathRewrite::Full("/n".into())),
                ..plain()
            },
            "a",
            80,
            "http://a/n?q",
        ),
    ];
    for (name, redirect, host, port, expected) in rows {
        let request = get("/p?q", &[("host", host)]);
        assert_eq!(
            location(&redirect, &any(), &request, port).unwrap(),
            expected,
            "{name}"
        );
    }
}

#[test]
fn a_redirect_without_a_path_or_a_host_to_keep_stays_on_the_server() {
    let redirect = Redirect {
        scheme: None,
        host: None,
        port: None,
        path: None,
        status: StatusCode::FOUND,
    };
    let request = get("*", &[("host", "a")]);
    assert_eq!(
        location(&redirect, &any(), &request, 80).unwrap(),
        "http://a/"
    );
    // Without a host to repeat, to a path on the same server and on no other.
    for (target, host) in [("/b?c", ""), ("//b?c", ""), ("/\\b?c", ""), ("/b?c", ":80")] {
        let request = get(target, &[("host", host)]);
        let location = location(&redirect, &any(), &request, 8080).unwrap();
        assert_eq!(location, "/b?c", "{target} {host}");
    }
}

#[test]
fn a_redirect_of_a_target_with_other_bytes_than_ascii_has_a_location_all_the_same() {
    let redirect = Redirect {
        scheme: None,
        host: None,
        port: None,
        path: None,
        status: StatusCode::FOUND,
    };
    for (target, expected) in [
        ("/caf\u{e9}?q=\u{20ac}", "http://a/caf%C3%A9?q=%E2%82%AC"),
        ("/caf%C3%A9", "http://a/caf%C3%A9"),
    ] {
        let request = get(target, &[("host", "a")]);
        let location = location(&redirect, &any(), &request, 80).unwrap();
        assert_eq!(location, expected);
    }
}

#[test]
fn an_empty_value_is_one_of_several() {
    let exact = |value: &str| HeaderMatch {
        name: HeaderName::from_static("x"),
        value: StringMatch::Exact(value.into()),
        invert: false,
    };
    let request = get("/", &[("x", ""), ("x", "a"), ("x", "")]);
    for (value, expected) in [(",a,", true), ("a,", false), ("a", false)] {
        let rule = RouteMatch {
            headers: vec![exact(value)],
            ..any()
        };
        assert_eq!(matching::matches(&rule, &request), expected, "{value:?}");
    }
}

#[test]
fn headers_are_removed_then_set_then_added() {
    let name = HeaderName::from_static;
    let value = HeaderValue::from_static;
    let changes = HeaderChanges {
        remove: vec![name("x-gone")],
        set: vec![(name("x-set"), value("new"))],
        add: vec![(name("x-add"), value("2")), (name("x-gone"), value("back"))],
    };
    let mut headers = get(
        "/",
        &[
            ("x-gone", "1"),
            ("x-set", "old"),
            ("x-set", "older"),
            ("x-add", "1"),
        ],
    )
    .headers;
    change_headers(&changes, &mut headers);
    let all = |name: &str| {
        headers
            .get_all(name)
            .iter()
            .map(|v| v.to_str().unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        (all("x-gone"), all("x-set"), all("x-add")),
        (vec!["back"], vec!["new"], vec!["1", "2"])
    );
}
