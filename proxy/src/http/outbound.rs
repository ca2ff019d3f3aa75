//! A request of this pod's app, on its way out.

use std::rc::Rc;
use std::sync::Arc;

use http::request::Parts;
use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;

use super::body::ResponseBody;
use super::exchange::{Arrived, Connection, Exchange};
use super::forward::{self, Attempts, Destination, Plan};
use super::local_reply::Failure;
use crate::config::cluster::Discovery;
use crate::config::listener::{Protocol, RouteSource};
use crate::config::route::{Route, RouteAction, RouteTable};
use crate::config::{Lookup, OutboundListener, Resolution, Snapshot};
use crate::net::Reach;
use crate::route;
use crate::upstream::Head;

/// What a request's route says.
enum Decision {
    Forward(Plan),
    Answer(StatusCode, Option<HeaderValue>),
}

/// The recipe: listener, route, cluster, then upstream. Each part is a function of its own, so that what one of them has
/// used up is not carried along by the next.
pub(super) async fn serve(
    connection: Rc<Connection>,
    request: Request<Incoming>,
) -> Response<ResponseBody> {
    match plan(connection, request).await {
        Ok(planned) => send(planned).await,
        Err(answer) => answer,
    }
}

/// A request that goes upstream.
struct Planned {
    exchange: Exchange,
    plan: Plan,
    head: Head,
    upgrade: Option<OnUpgrade>,
}

/// An error is the answer to a request that goes nowhere.
async fn plan(
    connection: Rc<Connection>,
    request: Request<Incoming>,
) -> Result<Planned, Response<ResponseBody>> {
    let mut arrived = Arrived::new(connection, request);
    let asked = match arrived.exchange.prepare(&mut arrived.parts) {
        Ok(asked) => asked,
        Err(failure) => return Err(arrived.unread().refuse(&failure).await),
    };
    let plan = match decide(&mut arrived.exchange, &arrived.parts).await {
        Ok(Decision::Forward(plan)) => plan,
        Ok(Decision::Answer(status, location)) => {
            return Err(answer(arrived.unread(), status, location).await);
        }
        Err(failure) => return Err(arrived.unread().refuse(&failure).await),
    };
    let Arrived {
        mut exchange,
        mut parts,
        body,
        upgrade,
    } = arrived;
    if let Err(failure) = plan.change_request(&mut parts) {
        exchange.take_body(body, 0);
        return Err(exchange.refuse(&failure).await);
    }
    exchange.take_body(body, plan.retry_policy().max_replay_bytes);
    exchange.record.cluster = Some(plan.cluster.clone());
    Ok(Planned {
        exchange,
        plan,
        head: parts.into(),
        upgrade: asked.then_some(upgrade),
    })
}

async fn send(planned: Planned) -> Response<ResponseBody> {
    let Planned {
        mut exchange,
        plan,
        head,
        upgrade,
    } = planned;
    let mut attempts = Attempts::new(&plan, head);
    match attempts.run(&mut exchange, &plan).await {
        Ok(won) => forward::answer(exchange, &plan, attempts, won, upgrade),
        Err(failure) => exchange.refuse(&failure).await,
    }
}

/// Finds what the request's destination and route say; asks the control plane only if the destination is not known.
async fn decide(exchange: &mut Exchange, request: &Parts) -> Result<Decision, Failure> {
    let destination = exchange.connection.downstream.original_dst;
    let worker = exchange.worker().clone();
    {
        let snapshot = worker.config.load();
        worker.upstream.sync(&snapshot);
        match snapshot.lookup(destination) {
            Some(Lookup::Known(listener)) => {
                return route_of(exchange, &snapshot, listener, request);
            }
            Some(Lookup::Unknown) => return Ok(Decision::Forward(pass_through(exchange))),
            None => {}
        }
    }
    match worker.config.resolve(destination).await {
        Resolution::Known(listener) => {
            route_of(exchange, &worker.config.load(), &listener, request)
        }
        Resolution::Unknown => Ok(Decision::Forward(pass_through(exchange))),
        Resolution::Unanswered if worker.settings.passthrough_undiscovered => {
            Ok(Decision::Forward(pass_through(exchange)))
        }
        Resolution::Unanswered => Err(Failure::Undiscovered),
    }
}

/// A destination that the mesh does not know gets what it would get without a mesh.
fn pass_through(exchange: &Exchange) -> Plan {
    let address = exchange.connection.downstream.original_dst;
    Plan {
        cluster: exchange.worker().upstream.passthrough().clone(),
        destination: Destination::Original(address, Reach::Out),
        route: None,
    }
}

fn route_of(
    exchange: &mut Exchange,
    snapshot: &Snapshot,
    listener: &OutboundListener,
    request: &Parts,
) -> Result<Decision, Failure> {
    let (Protocol::Http(source) | Protocol::Detect { http: source, .. }) = &listener.protocol
    else {
        return Err(Failure::NotHttp);
    };
    let route = find(snapshot, source, request)?;
    exchange.record.route = Some(route.clone());
    match &route.action {
        RouteAction::Respond(status) => Ok(Decision::Answer(*status, None)),
        RouteAction::Redirect(redirect) => {
            let port = exchange.connection.downstream.original_dst.port();
            let location = route::location(redirect, &route.matches, request, port)?;
            Ok(Decision::Answer(redirect.status, Some(location)))
        }
        RouteAction::Forward(forward) => {
            let index = route::pick_cluster(forward, &mut fastrand::Rng::new());
            let cluster = snapshot.cluster(&forward.clusters[index].name);
            let cluster = cluster
                .ok_or(Failure::NoCluster(forward.cluster_not_found))?
                .clone();
            let destination = match cluster.discovery {
                Discovery::Eds | Discovery::Inline => Destination::Balanced,
                Discovery::OriginalDst => {
                    let address = exchange.connection.downstream.original_dst;
                    Destination::Original(address, Reach::Out)
                }
            };
            Ok(Decision::Forward(Plan {
                cluster,
                destination,
                route: Some((route.clone(), index)),
            }))
        }
    }
}

fn find<'s>(
    snapshot: &'s Snapshot,
    source: &'s RouteSource,
    request: &Parts,
) -> Result<&'s Arc<Route>, Failure> {
    let table: &RouteTable = snapshot.route_table(source).ok_or(Failure::NoRoute)?;
    route::find(table, request).ok_or(Failure::NoRoute)
}

async fn answer(
    mut exchange: Exchange,
    status: StatusCode,
    location: Option<HeaderValue>,
) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::empty());
    *response.status_mut() = status;
    if let Some(route) = &exchange.record.route {
        route::change_headers(&route.response_headers, response.headers_mut());
    }
    if let Some(location) = location {
        response.headers_mut().insert(header::LOCATION, location);
    }
    exchange.read_out().await;
    exchange.finish(&mut response);
    response
}
