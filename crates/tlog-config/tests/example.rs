//! The example file.

use std::path::Path;
use std::sync::Arc;

use tlog_config::{Configuration, FileSource, check};
use tlog_proto::VdiskId;

#[tokio::test]
async fn the_example_is_right_and_says_what_its_comments_do() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/vdisks.yaml");
    let source = FileSource::new(file);
    assert_eq!(check(&source).await.unwrap(), []);
    let configuration = Configuration::open(Arc::new(source)).await.unwrap();
    let data = configuration.vdisk(&VdiskId::new("data").unwrap()).borrow().clone().unwrap();
    let log = data.tlog.as_ref().unwrap();
    assert_eq!((log.cluster.data.len(), log.slave.as_ref().unwrap().id.as_str()), (6, "spare"));
    assert_eq!(data.nbd.as_ref().unwrap().tlog_servers.as_ref().unwrap().len(), 2);
    assert_eq!(configuration.vdisks().borrow().len(), 2);
}
