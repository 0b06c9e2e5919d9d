//! Work that must come to its end although hyper drops the handler that waits for it when the
//! client leaves.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio_util::task::TaskTracker;

/// A future that outlives whoever waits for it: dropped before its end, it goes on as a task of
/// its own, and its output is dropped there.
#[must_use]
pub struct Carried<T: Send + 'static> {
    future: Option<Pin<Box<dyn Future<Output = T> + Send>>>,
    tasks: TaskTracker,
}

impl<T: Send + 'static> Carried<T> {
    /// Work that goes on as a task of `tasks`.
    pub fn new(tasks: &TaskTracker, future: impl Future<Output = T> + Send + 'static) -> Self {
        Self { future: Some(Box::pin(future)), tasks: tasks.clone() }
    }
}

impl<T: Send + 'static> Future for Carried<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        // Taken out: one that panics is dropped by that, and does not go on as a task (f83).
        let Some(mut future) = self.future.take() else {
            // Polled again after its end, which no caller does.
            return Poll::Pending;
        };
        let polled = future.as_mut().poll(context);
        if polled.is_pending() {
            self.future = Some(future);
        }
        polled
    }
}

impl<T: Send + 'static> Drop for Carried<T> {
    fn drop(&mut self) {
        // Without a runtime the process is ending, and what is open is in doubt (D36).
        if let Some(future) = self.future.take()
            && tokio::runtime::Handle::try_current().is_ok()
        {
            self.tasks.spawn(future);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[tokio::test]
    async fn d33_work_goes_on_when_its_waiter_leaves() {
        let tasks = TaskTracker::new();
        let done = Arc::new(AtomicBool::new(false));
        let (finish, finished) = tokio::sync::oneshot::channel::<()>();
        let flag = Arc::clone(&done);
        let mut carried = Carried::new(&tasks, async move {
            let _ = finished.await;
            flag.store(true, Ordering::SeqCst);
        });
        let polled = std::future::poll_fn(|context| {
            Poll::Ready(Pin::new(&mut carried).poll(context).is_pending())
        });
        assert!(polled.await);
        drop(carried);
        finish.send(()).unwrap();
        tasks.close();
        tasks.wait().await;
        assert!(done.load(Ordering::SeqCst));
    }
}
