/*
 * inbox.h
 *	  The columns of millrace.inbox, for who writes it and who reads it.
 */
#ifndef MR_SOURCE_INBOX_H
#define MR_SOURCE_INBOX_H

/* By attribute number - 1. */
#define MR_INBOX_PUSH_NO 0
#define MR_INBOX_STREAM_ID 1
#define MR_INBOX_BUCKET 2
#define MR_INBOX_MESSAGE_TIME 3
#define MR_INBOX_KEY 4
#define MR_INBOX_VALUE 5
#define MR_INBOX_HEADERS 6
#define MR_INBOX_COLUMNS 7

#endif /* MR_SOURCE_INBOX_H */
