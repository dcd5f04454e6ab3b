//! Tokens: who has one may open its session, once, within a minute.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How long a token waits for its client.
const LIFETIME: Duration = Duration::from_secs(60);

/// More sessions than this don't wait at a time (upstream's limit).
const MAX_WAITING: usize = 1000;

/// Sessions that wait for their client.
#[derive(Debug)]
pub(super) struct Tokens<T> {
    waiting: HashMap<String, (Instant, T)>,
}

impl<T> Tokens<T> {
    pub(super) fn new() -> Self {
        Tokens {
            waiting: HashMap::new(),
        }
    }

    /// Keeps `session` for whoever brings the returned token; `None` if too many wait.
    pub(super) fn insert(&mut self, session: T, now: Instant) -> Option<String> {
        self.waiting.retain(|_, (until, _)| *until > now);
        if self.waiting.len() >= MAX_WAITING {
            return None;
        }
        let token = uuid::Uuid::new_v4().simple().to_string();
        self.waiting
            .insert(token.clone(), (now + LIFETIME, session));
        Some(token)
    }

    /// The session of this token, which is void from now on.
    pub(super) fn take(&mut self, token: &str, now: Instant) -> Option<T> {
        let (until, session) = self.waiting.remove(token)?;
        (until > now).then_some(session)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_opens_its_session_once_and_in_time() {
        let (mut tokens, now) = (Tokens::new(), Instant::now());
        let first = tokens.insert("a", now).unwrap();
        let second = tokens.insert("b", now).unwrap();
        assert_ne!(first, second);
        assert_eq!(tokens.take(&first, now), Some("a"));
        assert_eq!(tokens.take(&first, now), None);
        assert_eq!(tokens.take(&second, now + LIFETIME), None);
    }

    #[test]
    fn too_many_sessions_are_refused_until_the_old_ones_are_void() {
        let (mut tokens, now) = (Tokens::new(), Instant::now());
        assert!((0..MAX_WAITING).all(|_| tokens.insert((), now).is_some()));
        assert!(tokens.insert((), now).is_none());
        assert!(tokens.insert((), now + LIFETIME).is_some());
    }
}
