//! Who is told of the points that code reaches.

use std::cell::RefCell;
use std::rc::Rc;

use crate::Point;

type Watch = Rc<dyn Fn(Point)>;

thread_local! {
    static WATCH: RefCell<Option<Watch>> = const { RefCell::new(None) };
}

/// Points are watched on this thread as long as this exists.
#[derive(Debug)]
#[must_use]
pub struct Watched(());

/// From now on `watch` is called, on this thread, whenever code reaches a point.
pub fn watch_points(watch: impl Fn(Point) + 'static) -> Watched {
    WATCH.set(Some(Rc::new(watch)));
    Watched(())
}

impl Drop for Watched {
    fn drop(&mut self) {
        WATCH.set(None);
    }
}

pub(crate) fn reached(point: Point) {
    let watch = WATCH.with_borrow(Clone::clone);
    if let Some(watch) = watch {
        watch(point);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_watched_until_that_ends() {
        let seen = Rc::new(RefCell::new(Vec::new()));
        let watched = watch_points({
            let seen = Rc::clone(&seen);
            move |point| seen.borrow_mut().push(point)
        });
        reached(Point::BeforeSeal);
        drop(watched);
        reached(Point::AfterSeal);
        assert_eq!(*seen.borrow(), [Point::BeforeSeal]);
    }
}
