# Messages of the tlog protocol, version 1.1, and of what is stored.
#
# A field that exists may never change. New ones are appended, so that a peer
# that does not know them does not notice. `cargo xtask codegen` turns this
# file into crates/tlog-proto/src/generated/tlog_capnp.rs, which is committed.
@0xf4533cbae6e08506;

# First message of a connection, client to server.
struct HandshakeRequest {
  version            @0 :UInt32;  # major<<24 | minor<<16 | patch<<8 | stage
  vdiskID            @1 :Text;
  firstSequence      @2 :UInt64;  # sequence of the first block that the client will send
  resetFirstSequence @3 :Bool;    # start over at firstSequence, whatever the log holds
  session            @4 :UInt64;  # random, one per client instance; 0: unknown
  returning          @5 :Bool;    # this client instance was accepted before, here or at another server
  foundGeneration    @6 :UInt64;  # only if returning: endGeneration and endSequence of
  foundSequence      @7 :UInt64;  #   the first answer that it was accepted with
}

# Answer to it, server to client.
struct HandshakeResponse {
  version             @0 :UInt32;
  status              @1 :Int8;    # a HandshakeStatus; below 0 the server then closes
  lastFlushedSequence @2 :UInt64;  # only if hasLastFlushed
  hasLastFlushed      @3 :Bool;
  refusal             @4 :UInt8;   # why status is below 0: a Refusal; 0: not told
  hasEnd              @5 :Bool;
  endGeneration       @6 :UInt64;  # only if hasEnd: where the log ends; both 0 in an empty one
  endSequence         @7 :UInt64;
}

# Server to client, any time after the handshake.
struct TlogResponse {
  status    @0 :Int8;              # a BlockStatus
  sequences @1 :List(UInt64);
}

# One write on a vdisk. Sent after type byte 1, and stored in aggregations.
struct TlogBlock {
  sequence  @0 :UInt64;
  index     @1 :Int64;             # index of the block on the vdisk
  hash      @2 :Data;              # BLAKE2b-256 of data
  data      @3 :Data;
  timestamp @4 :UInt64;            # nanoseconds since the Unix epoch, set by the client
  operation @5 :UInt8;             # 1 set, 2 delete
}

# A run of ordered blocks. Stored, never sent.
struct TlogAggregation {
  name      @0 :Text;
  size      @1 :UInt64;            # number of blocks
  timestamp @2 :UInt64;
  vdiskID   @3 :Text;
  blocks    @4 :List(TlogBlock);
  prev      @5 :Data;              # id of the previous aggregation (format 1), else empty
}

# Sent after type byte 2 or 3.
struct Command {
  type     @0 :UInt8;              # the type byte again
  sequence @1 :UInt64;
}
