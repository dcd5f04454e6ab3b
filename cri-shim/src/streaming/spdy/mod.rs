//! SPDY/3.1 (draft-mbelshe-httpbis-spdy-00), as much as upstream's clients use: many streams over one upgraded
//! connection, opened by the client, without flow-control windows (which none of those clients keeps).

mod connection;
mod dictionary;
mod frame;
mod headers;
#[cfg(test)]
pub(super) mod testing;

pub(super) use connection::{Connection, Stream, StreamWriter};
