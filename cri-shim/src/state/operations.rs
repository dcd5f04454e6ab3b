//! Operations by key: a repeated request joins the one that is running, and a client that goes away cancels nothing.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;
use tonic::Status;

type Outcome<T> = watch::Receiver<Option<Result<T, Status>>>;

/// The operations that are running, by key.
#[derive(Debug)]
pub struct Operations<T> {
    running: Arc<Mutex<HashMap<String, Outcome<T>>>>,
}

impl<T> Default for Operations<T> {
    fn default() -> Self {
        Self {
            running: Arc::default(),
        }
    }
}

impl<T: Clone + Send + Sync + 'static> Operations<T> {
    /// Runs `operation` in a task of its own, or joins the one of this key, and returns its outcome.
    ///
    /// # Errors
    /// The operation's.
    pub async fn join(
        &self,
        key: &str,
        operation: impl Future<Output = Result<T, Status>> + Send + 'static,
    ) -> Result<T, Status> {
        let mut outcome = {
            let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            match running.get(key) {
                Some(outcome) => outcome.clone(),
                None => {
                    let (sender, outcome) = watch::channel(None);
                    running.insert(key.to_owned(), outcome.clone());
                    let done = Done {
                        running: self.running.clone(),
                        key: key.to_owned(),
                    };
                    tokio::spawn(async move {
                        let result = operation.await;
                        drop(done);
                        sender.send_replace(Some(result));
                    });
                    outcome
                }
            }
        };
        let found = outcome.wait_for(Option::is_some).await;
        match found.as_deref() {
            Ok(Some(result)) => result.clone(),
            // The sender went without a word: the task panicked or the runtime is going down.
            _ => Err(Status::internal("the operation ended without a result")),
        }
    }
}

/// Takes the key out again, whichever way the task ends.
struct Done<T> {
    running: Arc<Mutex<HashMap<String, Outcome<T>>>>,
    key: String,
}

impl<T> Drop for Done<T> {
    fn drop(&mut self) {
        self.running
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_repeated_request_joins_and_an_impatient_client_cancels_nothing() {
        let operations = Arc::new(Operations::<u32>::default());
        let runs = Arc::new(AtomicU32::new(0));
        let (release, gate) = watch::channel(false);
        let request = || {
            let (runs, mut gate) = (runs.clone(), gate.clone());
            let operations = operations.clone();
            tokio::spawn(async move {
                let operation = async move {
                    let n = runs.fetch_add(1, Ordering::SeqCst) + 1;
                    gate.wait_for(|open| *open)
                        .await
                        .map_err(|_| Status::aborted("gate"))?;
                    Ok(n)
                };
                operations.join("key", operation).await
            })
        };
        let impatient = request();
        while runs.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        let (second, third) = (request(), request());
        impatient.abort();
        tokio::task::yield_now().await;
        release.send_replace(true);
        assert_eq!(second.await.unwrap().unwrap(), 1);
        assert_eq!(third.await.unwrap().unwrap(), 1);
        assert_eq!(
            request().await.unwrap().unwrap(),
            2,
            "an operation that ended is not joined"
        );
    }
}
