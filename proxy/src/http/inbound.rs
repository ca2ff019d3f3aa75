//! A request for this pod's app.
//!
//! The app is the connection's original destination, reached from the source address that capture exempts. What the
//! app never got is told to a mesh peer in a form that it may act upon: `REFUSED_STREAM`, or the mark on HTTP/1.

use std::rc::Rc;

use http::request::Parts;
use http::{Request, Response};
use hyper::body::Incoming;

use super::body::ResponseBody;
use super::exchange::{Arrived, Connection, Exchange};
use super::forward::{self, Attempts, Destination, Plan};
use super::headers;
use super::local_reply::{self, Failure};
use crate::config::listener::Protocol;
use crate::config::route::RouteAction;
use crate::conn::{HttpVersion, Security};
use crate::net::Reach;
use crate::retry::REPLAY_CAP;
use crate::route;
use crate::upstream::Head;

/// The recipe: policy, provenance, then the app. An error refuses the stream.
pub(super) async fn serve(
    connection: Rc<Connection>,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody>, h2::Error> {
    let Arrived {
        mut exchange,
        parts,
        body,
        upgrade,
    } = Arrived::new(connection, request);
    exchange.take_body(body, REPLAY_CAP);
    let (plan, head, asked) = match plan(&mut exchange, parts) {
        Ok(planned) => planned,
        Err(failure) => return refuse(exchange, &failure).await,
    };
    let upgrade = asked.then_some(upgrade);
    let mut attempts = Attempts::new(&plan, head);
    match attempts.run(&mut exchange, &plan).await {
        Ok(won) => Ok(forward::answer(exchange, &plan, attempts, won, upgrade)),
        Err(failure) => refuse(exchange, &failure).await,
    }
}

/// What becomes of a request, and whether its client asks to switch protocols.
fn plan(exchange: &mut Exchange, mut parts: Parts) -> Result<(Plan, Head, bool), Failure> {
    let asked = exchange.prepare(&mut parts)?;
    let plan = decide(exchange, &parts)?;
    plan.change_request(&mut parts)?;
    exchange.connection.provenance.apply(&mut parts.headers);
    exchange.record.request_id = parts.headers.get(headers::REQUEST_ID).cloned();
    exchange.record.forwarded_for = parts.headers.get(headers::FORWARDED_FOR).cloned();
    exchange.record.cluster = Some(plan.cluster.clone());
    Ok((plan, parts.into(), asked))
}

/// Policy is read again for every request, so that it counts on connections that were there before it.
fn decide(exchange: &mut Exchange, request: &Parts) -> Result<Plan, Failure> {
    let downstream = exchange.connection.downstream.clone();
    let address = downstream.original_dst;
    let worker = exchange.worker().clone();
    let snapshot = worker.config.load();
    worker.upstream.sync(&snapshot);
    let listener = snapshot.inbound.as_ref().ok_or(Failure::Undiscovered)?;
    let port = listener.port(address.port());
    if downstream.security == Security::Plaintext && !port.plaintext {
        return Err(Failure::Plaintext);
    }
    let destination = Destination::Original(address, Reach::App);
    let default = || Plan {
        cluster: worker.upstream.app().clone(),
        destination,
        route: None,
    };
    let (Protocol::Http(table) | Protocol::Detect { http: table, .. }) = &port.protocol else {
        return Ok(default());
    };
    if table.routes.is_empty() {
        return Ok(default());
    }
    let route = route::find(table, request).ok_or(Failure::NoRoute)?;
    exchange.record.route = Some(route.clone());
    let RouteAction::Forward(forward) = &route.action else {
        return Err(Failure::NoRoute);
    };
    let cluster = snapshot.cluster(&forward.clusters[0].name);
    Ok(Plan {
        cluster: cluster.unwrap_or(worker.upstream.app()).clone(),
        destination,
        route: Some((route.clone(), 0)),
    })
}

/// Says that the request failed; if the app never got it, a mesh peer learns so.
async fn refuse(
    exchange: Exchange,
    failure: &Failure,
) -> Result<Response<ResponseBody>, h2::Error> {
    let unprocessed = match failure {
        Failure::Upstream(error) => error.is_unprocessed(),
        other => matches!(other, Failure::Overload),
    };
    if !unprocessed {
        return Ok(exchange.refuse(failure).await);
    }
    if !exchange.connection.downstream.is_mesh_peer() {
        // The next connection may reach another pod, where there is an app.
        exchange.connection.close_after_answers();
        return Ok(exchange.refuse(failure).await);
    }
    if exchange.connection.version == HttpVersion::Http2 {
        if let Some(calm) = exchange.connection.calm() {
            calm.refuse();
        }
        drop(exchange.fail(failure));
        return Err(h2::Reason::REFUSED_STREAM.into());
    }
    // A body that is left unread would make the answer race with a reset.
    exchange.replay.discard().await;
    let mut response = exchange.fail(failure);
    local_reply::mark_unprocessed(&mut response);
    Ok(response)
}
