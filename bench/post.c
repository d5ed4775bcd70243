/*
 * post.c
 *	  A bare loop of libcurl's multi interface: as many POSTs as fast as they go, and nothing else.
 *
 *	  post URL REQUESTS CONNECTIONS BODY
 */
#include <curl/curl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static size_t
ignore(char *bytes, size_t size, size_t count, void *argument)
{
	(void) bytes;
	(void) argument;
	return size * count;
}

/* Begins one more request. */
static void
begin(CURLM *multi, const char *url, const char *body, struct curl_slist *headers)
{
	CURL *handle = curl_easy_init();

	curl_easy_setopt(handle, CURLOPT_URL, url);
	curl_easy_setopt(handle, CURLOPT_POSTFIELDS, body);
	curl_easy_setopt(handle, CURLOPT_HTTPHEADER, headers);
	curl_easy_setopt(handle, CURLOPT_WRITEFUNCTION, ignore);
	curl_multi_add_handle(multi, handle);
}

int
main(int argc, char **argv)
{
	struct curl_slist *headers = curl_slist_append(NULL, "Content-Type: application/json");
	long wanted = argc > 4 ? atol(argv[2]) : 0;
	long begun = 0;
	long done = 0;
	CURLM *multi;

	if (wanted == 0)
	{
		fprintf(stderr, "usage: post URL REQUESTS CONNECTIONS BODY\n");
		return 2;
	}
	curl_global_init(CURL_GLOBAL_DEFAULT);
	multi = curl_multi_init();
	for (; begun < wanted && begun < atol(argv[3]); begun++)
		begin(multi, argv[1], argv[4], headers);
	while (done < wanted)
	{
		CURLMsg *message;
		int running;
		int left;

		curl_multi_perform(multi, &running);
		while ((message = curl_multi_info_read(multi, &left)) != NULL)
		{
			CURL *handle = message->easy_handle;

			if (message->data.result != CURLE_OK)
			{
				fprintf(stderr, "%s\n", curl_easy_strerror(message->data.result));
				return 1;
			}
			curl_multi_remove_handle(multi, handle);
			curl_easy_cleanup(handle);
			done++;
			if (begun++ < wanted)
				begin(multi, argv[1], argv[4], headers);
		}
		if (done < wanted)
			curl_multi_poll(multi, NULL, 0, 1000, NULL);
	}
	return 0;
}
