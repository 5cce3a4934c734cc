//! Events: by long poll, or as server-sent events.

use super::{
    bounded_wait,
    error::{ApiError, LookupErrors},
    extract::Query,
    request::Call,
};
use axum::{
    Json,
    http::{HeaderMap, header},
    response::{
        IntoResponse, Response,
        sse::{self, KeepAlive, Sse},
    },
};
use futures::{Stream, stream};
use offshoot_api::v1::{self, EventPage, EventQuery};
use offshoot_engine::EventStream;
use offshoot_types::{Command, Event, EventId, Failure};
use std::convert::Infallible;
use tokio::time::{Instant, timeout_at};

const MAX_PAGE: u32 = 1000;

/// What happened after an event, in order. With `Accept: text/event-stream`, as it goes on happening.
#[utoipa::path(get, path = "/v1/events", tag = "events", operation_id = "events", params(EventQuery),
    responses(
        (status = 200, description = "A page, or a stream of `Event`s", content(
            (v1::EventPage = "application/json"), (v1::Event = "text/event-stream"))),
        LookupErrors))]
pub async fn events(
    call: Call,
    headers: HeaderMap,
    Query(query): Query<EventQuery>,
) -> Result<Response, ApiError> {
    let permit = call.permit(Command::Inspect { vm: None }).await?;
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    // A reader of a stream that reconnects says in this header how far it came.
    let seen = header("last-event-id").and_then(|id| id.parse().ok());
    let after = EventId(seen.unwrap_or(query.after));
    let events = call.engine.events(permit, Some(after)).await?;
    if header(header::ACCEPT.as_str()).is_some_and(|accept| accept.contains("text/event-stream")) {
        let stopping = {
            let app = call.app.clone();
            async move { app.shutdown.requested().await }
        };
        let stream = futures::StreamExt::take_until(server_sent(events), Box::pin(stopping));
        return Ok(Sse::new(stream).keep_alive(KeepAlive::default()).into_response());
    }
    let deadline = Instant::now() + bounded_wait(query.wait_ms);
    let limit = query.limit.unwrap_or(MAX_PAGE).clamp(1, MAX_PAGE) as usize;
    let found = tokio::select! {
        found = page(events, limit, deadline) => found?,
        () = call.app.shutdown.requested() => Vec::new(),
    };
    let next_after = found.last().map_or(after.0, |event| event.id.0);
    Ok(Json(EventPage { events: found.into_iter().map(Into::into).collect(), next_after }).into_response())
}

/// Waits for the first event only; the rest is what is there already.
async fn page(mut events: EventStream, limit: usize, deadline: Instant) -> Result<Vec<Event>, Failure> {
    let mut found = Vec::new();
    while found.len() < limit {
        match events.next_present().await? {
            Some(event) => found.push(event),
            None if !found.is_empty() => break,
            None => match timeout_at(deadline, events.next()).await {
                Ok(event) => found.push(event?),
                Err(_time_is_up) => break,
            },
        }
    }
    Ok(found)
}

fn server_sent(events: EventStream) -> impl Stream<Item = Result<sse::Event, Infallible>> {
    stream::unfold(Some(events), |events| async {
        let mut events = events?;
        let (event, rest) = match events.next().await {
            Ok(event) => {
                let id = event.id.0.to_string();
                let json = serde_json::to_string(&v1::Event::from(event)).expect("an event is plain data");
                (sse::Event::default().id(id).data(json), Some(events))
            }
            Err(failure) => (sse::Event::default().event("failed").data(failure.message), None),
        };
        Some((Ok(event), rest))
    })
}
