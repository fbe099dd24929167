"""Proper names that people write in lower case: data, and no rule. Names with a capital, digit or other sign need no list.

What is also a common word ("go", "edge", "turkey") is left out, unless as a name it is the commoner of the two.
"""

from .words import listed

_SOFTWARE = """
activemq airflow alpine anaconda android angular ansible apache arduino argocd asana asp audacity aws azure babel bash
bazel bigquery bitbucket bitwarden blender bluetooth bootstrap brew bugzilla canva cassandra celery centos ceph
chatgpt chrome chromium cicd circleci clang claude clickhouse clojure cloudflare cloudformation cmake cobol cocoapods
codepen composer conda confluence consul copilot couchbase couchdb cpanel cron crontab cucumber cuda cypress dart
databricks datadog dbeaver debian deno discord django dlib docker dockerfile dockerhub dotnet dropbox drupal duckdb
duckduckgo dynamodb eclipse elasticsearch electron elixir emacs erlang eslint esp32 etcd excel fargate fastapi fedora
ffmpeg figma firebase firefox flask flink flutter fortran freebsd gatsby gcc gcp gdb gemini gentoo gerrit ghostscript
gimp git github gitlab gmail gnome godot golang google gpg gradle grafana graphql grep grok grub gulp hadoop haproxy
haskell hbase helm heroku hibernate homebrew htop httpd hugo imagemagick influxdb inkscape intellij ios ipad iphone
ipython istio java javac javascript jenkins jest jetbrains jira jquery julia jupyter kafka kali kde keras kibana
kotlin kubectl kubelet kubernetes lambda laravel latex libreoffice lighttpd linux llama llvm logstash lua lucene mac
macbook macos magento mailchimp mariadb mastodon matlab matplotlib maven memcached mercurial minikube mitmproxy mongo
mongodb mongoose mssql mutt mysql nano neo4j neovim netbeans netlify nextjs nginx nmap node nodejs nomad npm nuget
numpy nuxt oauth ocaml okta onedrive openai openbsd opencv openshift openssh openssl openstack opera oracle outlook
pandas parquet pascal perl photoshop php phpmyadmin pinia pip pipenv plotly pnpm podman postfix postgres postgresql
postman powerbi powerpoint powershell prisma prometheus protobuf puppet puppeteer pycharm pylint pyspark pytest python
pytorch qemu qt quarkus rabbitmq rails rancher react redhat redis redshift redux rstudio rsync ruby rust rustc safari
salesforce samba sass scala scikit scipy seaborn selenium sendgrid sentry servicenow sharepoint shopify skype slack
snowflake solaris solidity solr sonarqube spark splunk spotify springboot sqlalchemy sqlite ssh stackoverflow stripe
subversion supabase svelte svn swiftui symfony systemd tableau tailwind tcpdump telegram tensorflow terraform
thunderbird tmux tomcat traefik trello twilio typescript ubuntu unity unix unreal vagrant vercel vim virtualbox vite
vmware vscode vue vuejs webpack wget whatsapp windows winrar wireshark wordpress xcode xubuntu yarn youtube zapier
zendesk zookeeper zoom zsh
"""

_FORMATS_AND_PROTOCOLS = """
aes ajax ascii avi avif bmp bson btrfs bzip2 cors css csv dhcp dns doc docx dvi epub exe exfat ext3 ext4 fat32 flac
ftp gif grpc gzip heic hevc html http https icmp imap ipv4 ipv6 iso jpeg jpg json jwt kerberos ldap markdown md5 midi
mkv mov mp3 mp4 mpeg mqtt msi nfs ntfs odt ogg opus otf pdf png pop3 pps ppt pptx psd rar rsa rss rtf rtsp saml scp
sctp sftp sha1 sha256 smb smtp snmp soap socks sql svg tcp telnet tiff tls toml tsv ttf udp utf8 vhs vpn wav webm webp
webrtc websocket wifi wma wmv woff xls xlsx xml xmpp yaml yml zfs
"""

_COMPANIES_AND_PRODUCTS = """
adidas adobe airbnb airpods aldi alexa alibaba amazon amd amex amtrak apple arby audi bing bmw boeing burgerking
cadillac canon capgemini chase chevrolet chevy chipotle chrysler cisco citi citibank coinbase coke comcast costco dell
deloitte delta disney doordash ebay epson ericsson ethereum expedia facebook fedex ferrari fiat fiverr flipkart
foxconn garmin gillette glassdoor gopro gucci hbo hilton honda hotstar hsbc huawei hulu hyatt hyundai ibm ikea
imessage infosys instacart instagram intel jeep jetblue kfc kia kindle kodak kroger lamborghini lego lenovo lexus lidl
linkedin litecoin logitech lufthansa lyft macy marriott maserati mastercard mazda mcdonald mercedes
microsoft mitsubishi monero motorola nest netflix nike nikon nintendo nissan nokia nvidia oneplus oppo panasonic
paypal paytm pepsi peugeot pinterest playstation porsche prada qualcomm quora reddit reliance renault roku rolex
roomba ryanair samsung sephora siemens siri skoda snapchat sony starbucks subaru subway suzuki swiggy tcs tesco tesla
tiktok tinder toshiba toyota tripadvisor tumblr twitch twitter uber ubereats udemy upwork venmo verizon viber visa
vodafone volkswagen volvo walgreens walmart wechat whirlpool wikipedia wipro xbox xiaomi yahoo yamaha yelp zara zelle
zomato zynga
"""

_PLACES = """
afghanistan africa alabama alaska albania algeria alps america amsterdam angeles ankara antarctica antonio arabia
argentina arizona arkansas armenia asia athens atlanta atlantic auckland austin australia austria azerbaijan baghdad
bahrain bali baltimore bangalore bangkok bangladesh barcelona beijing beirut belarus belfast belgium belgrade berlin
bern bolivia bombay bosnia boston brazil brisbane britain brooklyn brussels bucharest budapest bulgaria burma cairo
calgary california cambodia cambridge cameroon canada canberra caracas caribbean carolina charlotte chennai chicago
chile china cincinnati cleveland cologne colombia colorado columbus congo connecticut copenhagen croatia cuba cyprus
dakota dallas damascus delaware delhi denmark denver detroit dhaka diego dubai dublin edinburgh egypt england estonia
ethiopia europe fiji finland florence florida france francisco frankfurt gatwick geneva georgia germany ghana glasgow
goa greece greenland guatemala haiti hamburg hanoi havana hawaii heathrow helsinki himalaya hiroshima honduras
honolulu houston hungary hyderabad iceland idaho illinois india indiana indianapolis indonesia iowa iran iraq ireland
islamabad israel istanbul italy jakarta jamaica japan jersey jerusalem jfk johannesburg jordan jose kabul kansas
karachi kashmir kazakhstan kentucky kenya kerala kiev kolkata korea kosovo kuwait kyiv kyoto lahore laos latvia lax
lebanon libya lima lisbon lithuania liverpool london louisiana luxembourg lyon madagascar madrid maine malaysia
maldives malta manchester manhattan manila maryland massachusetts mecca melbourne memphis mexico miami michigan milan
milwaukee minneapolis minnesota mississippi missouri moldova mongolia montana montreal morocco moscow mozambique
mumbai munich myanmar nairobi namibia naples nashville nebraska nepal netherlands nevada nicaragua niger nigeria
norway oakland ohio oklahoma oman ontario oregon orlando orleans osaka oslo ottawa oxford pakistan palestine panama
paraguay paris pennsylvania perth peru philadelphia philippines phoenix pittsburgh poland portland portugal prague
pune punjab qatar quebec queens rica rio riyadh romania rome russia rwanda sacramento scotland seattle senegal seoul
serbia seville shanghai siberia sicily singapore slovakia slovenia somalia spain stockholm sudan sweden switzerland
sydney syria taipei taiwan tanzania tehran tennessee texas thailand tibet tokyo toronto tunisia uganda uk ukraine
uruguay usa utah uzbekistan vancouver vatican vegas venezuela venice vermont vienna vietnam virginia wales warsaw
washington wellington wisconsin wyoming yemen york zambia zimbabwe zurich
"""

_PEOPLES_AND_LANGUAGES = """
african american arab arabic argentinian asian australian austrian bengali brazilian british bulgarian canadian
cantonese catalan chilean chinese christian colombian croatian cuban czech danish dutch egyptian english european
filipino finnish french german greek gujarati hebrew hindi hindu hungarian icelandic indian indonesian iranian iraqi
irish islamic israeli italian japanese jewish kannada korean latin malay malayalam mandarin marathi mexican muslim
nepali norwegian pakistani persian peruvian portuguese punjabi romanian russian sanskrit scottish serbian slovak
somali spanish swahili swedish swiss syrian tagalog tamil telugu thai tibetan turkish ukrainian urdu vietnamese welsh
"""

_PEOPLE = """
adam alan albert alex alice amanda amy andrew angela anna anne anthony aristotle ashley barbara beethoven ben benjamin
bernie betty beyonce bob brandon brian buddha carol charles charlie chris christina christopher clinton dan daniel
dave david deborah dennis diana donald donna dorothy ed edward einstein elizabeth emily emma eric eva frank fred
gandhi gary george hannah harry heather helen henry hillary hitler isabella jack jacob james jane janet jason jeff
jeffrey jennifer jenny jerry jesus jim joan joe john jonathan joseph josh joshua juan julie karen kate katherine kathy
keith kelly kennedy kevin kim larry laura lauren lee lincoln linda lisa lucy luke margaret maria martin mary matt
matthew melissa messi michael michelle mike modi mohammed mozart nancy napoleon nathan newton nicholas nicole nixon
obama oliver olivia pamela patricia patrick paul peter philip picasso plato putin rachel raymond rebecca richard
robert roger ronald ronaldo roosevelt ruth ryan sam samantha samuel sandra sarah scott shakespeare sharon simon smith
sophia stalin stephanie stephen steve steven stuart susan teresa thomas timothy tom tony trump tyler victoria vincent
walter wayne william zachary zuckerberg
"""

_MEDICINES = """
acetaminophen adderall advil allopurinol alprazolam amlodipine amoxicillin aspirin atenolol atorvastatin azithromycin
benadryl botox bupropion cetirizine cialis ciprofloxacin citalopram claritin clonazepam codeine diazepam diclofenac
doxycycline duloxetine escitalopram fentanyl fluoxetine furosemide gabapentin hydrocodone hydroxyzine ibuprofen
insulin ketamine lamotrigine levothyroxine lipitor lisinopril lithium loratadine lorazepam losartan melatonin
metformin methadone metoprolol metronidazole morphine naproxen nyquil omeprazole oxycodone ozempic paracetamol paxil
penicillin prednisone pregabalin prozac quetiapine ritalin sertraline sildenafil simvastatin tramadol trazodone
tylenol valium venlafaxine viagra vicodin warfarin wellbutrin xanax zoloft zolpidem zyrtec
"""

NAMES = frozenset().union(
    *map(
        listed,
        (
            _SOFTWARE,
            _FORMATS_AND_PROTOCOLS,
            _COMPANIES_AND_PRODUCTS,
            _PLACES,
            _PEOPLES_AND_LANGUAGES,
            _PEOPLE,
            _MEDICINES,
        ),
    )
)
"""In lower case."""
