//! Failpoints: moments at which a simulation or a test may end a process.
//!
//! They are all in this table, and [`reached`](crate::reached) is where each is in the code. In a build without the feature `failpoints` that
//! is nothing at all.

/// A moment between two effects on the world outside, at which a process may die.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "the table below says what each is")]
pub enum Point {
    BeforeSeal,
    AfterSeal,
    BeforeAppend,
    AfterAppend,
    BeforeAcknowledgement,
    AfterAcknowledgement,
    BeforePublish,
    AfterSurvey,
    AfterPromise,
    AfterAdoption,
    BeforeStart,
    AfterStart,
    BeforeFill,
    AfterFill,
    BeforeMembers,
    BeforeSlaveData,
    AfterSlaveData,
    BeforeSlavePosition,
    AfterSlavePosition,
    BeforeImage,
    AfterImagePart,
    AfterImage,
    AfterMark,
    BeforeRemoval,
    BeforeStoreRemoval,
    AfterStoreRemoval,
    AfterRemoval,
}

impl Point {
    /// All of them, with their names and what has happened by then.
    const TABLE: [(Point, &'static str, &'static str); 27] = [
        (Point::BeforeSeal, "before-seal", "writer: blocks of an aggregation are together, and not encoded"),
        (Point::AfterSeal, "after-seal", "writer: they are encoded, and no store was sent anything"),
        (
            Point::BeforeAppend,
            "before-append",
            "writer: one store is about to be sent its shard, others may have theirs",
        ),
        (Point::AfterAppend, "after-append", "writer: one store has answered, and that does not count yet"),
        (
            Point::BeforeAcknowledgement,
            "before-acknowledgement",
            "writer: W stores have answered, and nobody was told",
        ),
        (
            Point::AfterAcknowledgement,
            "after-acknowledgement",
            "writer: the server was told that it is durable",
        ),
        (Point::BeforePublish, "before-publish", "writer: one store is about to be told what is committed"),
        (Point::AfterSurvey, "after-survey", "recovery: stores were asked what they have"),
        (
            Point::AfterPromise,
            "after-promise",
            "recovery: they have promised the epoch, those before are fenced",
        ),
        (
            Point::AfterAdoption,
            "after-adoption",
            "recovery: what is adopted is decided, and written down nowhere",
        ),
        (
            Point::BeforeStart,
            "before-start",
            "recovery: one store is about to be sent the start record, others may have it",
        ),
        (Point::AfterStart, "after-start", "recovery: enough stores have it, and nothing was appended"),
        (Point::BeforeFill, "before-fill", "repair: a shard is rebuilt, and its store was not sent it"),
        (Point::AfterFill, "after-fill", "repair: the store has answered"),
        (
            Point::BeforeMembers,
            "before-members",
            "repair: one store is about to be sent a list with a new member",
        ),
        (
            Point::BeforeSlaveData,
            "before-slave-data",
            "slave: blocks are about to be applied to one store of it",
        ),
        (
            Point::AfterSlaveData,
            "after-slave-data",
            "slave: they are applied, and the position is the old one",
        ),
        (Point::BeforeSlavePosition, "before-slave-position", "slave: the position is about to be recorded"),
        (Point::AfterSlavePosition, "after-slave-position", "slave: it is recorded"),
        (
            Point::BeforeImage,
            "before-image",
            "prune: an image of a moment is about to be stored, others may be there",
        ),
        (Point::AfterImagePart, "after-image-part", "prune: a part of it is stored, and its record is not"),
        (Point::AfterImage, "after-image", "prune: its record is stored, and history is still there"),
        (Point::AfterMark, "after-mark", "prune: a mark is stored again, others may not be"),
        (
            Point::BeforeRemoval,
            "before-removal",
            "prune: all that takes the place of history is on all stores, and no store was told to remove any",
        ),
        (
            Point::BeforeStoreRemoval,
            "before-store-removal",
            "prune: one store is about to be told, others may have removed it",
        ),
        (
            Point::AfterStoreRemoval,
            "after-store-removal",
            "prune: one store has removed it, and that does not count yet",
        ),
        (
            Point::AfterRemoval,
            "after-removal",
            "prune: all stores that are there have removed it, and nobody was told",
        ),
    ];

    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        Self::TABLE.into_iter().map(|(point, ..)| point)
    }

    /// Whether whoever removes history reaches it: a program around the log, which no simulation has.
    pub fn is_of_prune(&self) -> bool {
        self.what().starts_with("prune: ")
    }

    /// As it is written on a command line.
    pub fn name(self) -> &'static str {
        self.entry().1
    }

    /// Which part of the product it is in, and what has happened by then.
    pub fn what(self) -> &'static str {
        self.entry().2
    }

    fn entry(self) -> (Self, &'static str, &'static str) {
        Self::TABLE.into_iter().find(|(point, ..)| *point == self).unwrap_or((self, "", ""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_point_has_a_name_of_its_own() {
        let names: std::collections::BTreeSet<_> = Point::all().map(Point::name).collect();
        assert_eq!(names.len(), Point::all().count());
        assert!(Point::all().all(|point| !point.name().is_empty() && point.what().contains(": ")));
        assert_eq!(Point::AfterRemoval as usize + 1, Point::all().count());
    }
}
