//! What happens to requests when there is too much going on, and that what was going on before goes on.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use http_body_util::Full;

use super::harness::*;
use crate::conn::Direction;
use crate::conn::HttpVersion::{self, Http1, Http2};
use crate::settings::Settings;
use crate::telemetry::Limit;

/// An app that answers after a moment.
async fn unhurried(version: HttpVersion) -> std::net::SocketAddr {
    app(version, |_| async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        Response::new(Full::new(Bytes::from_static(b"done")))
    })
    .await
}

#[test]
fn requests_over_the_bound_are_refused_and_those_within_it_served() {
    run(async {
        for version in [Http1, Http2] {
            let mut settings = Settings::default();
            settings.bounds.requests = 2;
            let sidecar = Sidecar::with_settings(service(&[unhurried(version).await]), settings);
            let ask = || async {
                let mut client = Client::new(sidecar.client(version), version).await;
                client.get("/").await.status.as_u16()
            };
            let mut statuses: [u16; 5] = tokio::join!(ask(), ask(), ask(), ask(), ask()).into();
            statuses.sort_unstable();
            assert_eq!(statuses, [200, 200, 503, 503, 503], "{version:?}");
            assert_eq!(ask().await, 200, "{version:?}: there is room again");
            let refused: Vec<_> = sidecar.records();
            let refused = refused.iter().filter(|it| it.flags.to_string() == "OM");
            assert_eq!(refused.count(), 3);
            assert_eq!(
                sidecar
                    .worker
                    .limits
                    .count(Limit::Requests, Direction::Outbound),
                3
            );
            assert_eq!(sidecar.worker.requests.get(), 0);
        }
    });
}

#[test]
fn while_memory_is_short_requests_are_refused_and_what_was_accepted_before_is_finished() {
    run(async {
        let sidecar = Sidecar::new(service(&[unhurried(Http1).await]));
        let mut before = Client::new(sidecar.client(Http1), Http1).await;
        let mut after = Client::new(sidecar.client(Http1), Http1).await;
        let shortage = async {
            while sidecar.worker.requests.get() == 0 {
                tokio::task::yield_now().await;
            }
            sidecar.worker.overload.use_memory(95);
            after.send(Method::POST, "/", "a body").await
        };
        let (finished, refused) = tokio::join!(before.get("/"), shortage);
        assert_eq!(
            (finished.status, &*finished.body),
            (StatusCode::OK, &b"done"[..])
        );
        assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(refused.header("x-tulle-failed-hop"), "source");
        assert_eq!(
            sidecar
                .worker
                .limits
                .count(Limit::Memory, Direction::Outbound),
            1
        );
        sidecar.worker.overload.use_memory(50);
        assert_eq!(after.get("/").await.status, StatusCode::OK);
    });
}

#[test]
fn a_peer_is_told_that_its_request_was_not_processed_so_that_it_goes_elsewhere() {
    run(async {
        for version in [Http1, Http2] {
            let app = echo(version, "a").await;
            let ca = Ca::new();
            let full = Sidecar::with_identity(inbound(false), ca.identity("reviews"));
            let free = Sidecar::with_identity(inbound(false), ca.identity("reviews"));
            full.worker.overload.use_memory(95);
            let endpoints = meshed(&[full.listen(app).await, free.listen(app).await], "reviews");
            let snapshot = outbound(vec![route_to("c")], vec![cluster("c", endpoints)]);
            let client_side = Sidecar::with_identity(snapshot, ca.identity("client"));
            let mut client = Client::new(client_side.client(version), version).await;
            for _ in 0..4 {
                let answer = client.send(Method::POST, "/", "once").await;
                assert_eq!(answer.status, StatusCode::OK, "{version:?}");
            }
            assert!(full.worker.limits.count(Limit::Memory, Direction::Inbound) > 0);
        }
    });
}
